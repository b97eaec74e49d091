// The tiered cache inside an unmodified llama.cpp context.
#pragma once

#include <memory>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

/// Who computes attention over what mikv stores.
enum class AttentionBy {
  mikv,   ///< mikv, fused over its tiers
  engine  ///< llama.cpp's own operator, over a copy of one layer's rows: to the bit what it computes without mikv.
          ///< Uncompressed specs
};

/// llama_init_from_model with the KV payload of every layer held by mikv under `spec`, and its attention computed by
/// mikv, or by llama.cpp where that is asked for and the spec compresses nothing. Forces flash attention, f16 KV types
/// and offload_kqv = false. account: null for one of its own. Free it with llama_free.
/// Errors: the model's attention is not supported (named); llama.cpp could not create the context.
Result<llama_context*> init_context(llama_model* model, llama_context_params params, const Spec& spec,
                                    AttentionBy attention_by = AttentionBy::mikv,
                                    std::shared_ptr<MemoryAccount> account = nullptr);

/// The cache of a context that init_context made; null for any other. Valid until llama_free. It has no layers if the
/// model has none that keep K and V (recurrent and many embedding models). Sequences are changed by llama_memory_*.
Context* cache_of(const llama_context* context);

}  // namespace mikv::llama
