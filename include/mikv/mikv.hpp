// mikv: a KV cache in two tiers, and attention fused over both (MiKV, arXiv 2402.18096).
//
//   auto spec  = mikv::Spec::parse("mikv").value();                      // keep 10 % in INT8, the rest in INT3
//   auto layer = std::move(mikv::LayerCache::create({12, 2, 128, 128}, spec)).value();
//   mikv::Workspace scratch(1);
//   layer->put(0, cells, k, k_stride, v, v_stride);                      // the prompt's keys and values
//   mikv::AttendArgs args{.q = q, .q_token_stride = 12 * 128, .q_head_stride = 128, .out = out,
//                         .out_token_stride = 12 * 128, .out_head_stride = 128, .n_tokens = n, .scale = 0.0884f};
//   layer->attend(args, scratch);                                        // exact, and counts importance
//   layer->commit(0);                                                    // compress: see layer->memory_usage()
#pragma once

#include "mikv/cache.hpp"
#include "mikv/memory_limit.hpp"
#include "mikv/result.hpp"
#include "mikv/spec.hpp"
