// Bits of lo=mixed move between the KV heads of layers of one model and spec, to those whose errors count more by the
// latest queries (docs/adr/0012-bits-between-heads.md). For a prompt that the next commit() compresses: a frozen
// segment keeps its bits.
#pragma once

#include <cstdint>
#include <span>

#include "layer/layer_cache.hpp"

namespace mikv {

/// Weighs n_most KV heads more, which is what takes long. Returns how many were weighed: 0 if none was left. Heads that
/// were weighed stay so until bits are shared. Errors: out of memory; calling again resumes.
Result<uint64_t> weigh_heads(std::span<LayerCache* const> layers, SegmentId segment, uint64_t n_most,
                             uint32_t n_threads);

/// Weighs what is not weighed, and shares bits. Errors: out of memory; no bits change then.
Status share_bits(std::span<LayerCache* const> layers, SegmentId segment, uint32_t n_threads = 1);

}  // namespace mikv
