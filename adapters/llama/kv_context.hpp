// The tiered cache inside an unmodified llama.cpp context.
#pragma once

#include <memory>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

/// Which code computes attention over what mikv stores.
enum class AttentionBy {
  mikv,   ///< mikv, fused over its tiers
  engine  ///< llama.cpp's own operator, over a copy of one layer's rows: equal to stock bit for bit. Uncompressed specs
          ///< only
};

/// llama_init_from_model with K and V of every layer held by mikv under `spec`. Forces flash attention, f16 KV types
/// and offload_kqv = false. account: null for one of its own. Free the context with llama_free. Errors: the model's
/// attention is not supported (named); llama.cpp cannot create the context.
Result<llama_context*> init_context(llama_model* model, llama_context_params params, const Spec& spec,
                                    AttentionBy attention_by = AttentionBy::mikv,
                                    std::shared_ptr<MemoryAccount> account = nullptr);

/// The cache of a context of init_context; null for any other. Valid until llama_free. Has no layers if none of the
/// model keeps K and V (recurrent and many embedding models). Change sequences by llama_memory_*, which tell the cache.
Context* cache_of(const llama_context* context);

}  // namespace mikv::llama
