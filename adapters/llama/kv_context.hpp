// The tiered cache inside an unmodified llama.cpp context: creation, compression, accounting, snapshots.
#pragma once

#include <memory>

#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

/// Who computes attention over what mikv stores.
enum class AttentionBy {
  mikv,   ///< mikv, fused over its tiers
  engine  ///< llama.cpp's own operator, over a copy of one layer's rows: to the bit what it computes without mikv.
          ///< Uncompressed specs
};

/// llama_init_from_model with the KV payload of every layer held by mikv under `spec`, and its attention computed by
/// mikv, or by llama.cpp where that is asked for and the spec compresses nothing. Forces flash attention, f16 KV types
/// and offload_kqv = false. Free it with llama_free. Errors: the model's attention is not supported (named); llama.cpp
/// could not create the context.
Result<llama_context*> init_context(llama_model* model, llama_context_params params, const Spec& spec,
                                    AttentionBy attention_by = AttentionBy::mikv);

/// False if the model has no attention layers with a KV cache (recurrent and many embedding models).
bool keeps_kv(const llama_context* ctx);

/// First error that a step of `ctx` met (out of memory, say), or ok. llama_decode cannot report it itself.
Status status(const llama_context* ctx);

/// Compresses what is staged, in all layers and all sequences of kFirstTokens at least: the end of a prompt under exact
/// prefill. A llama_decode of a single token does it by itself first.
Status end_prompt(llama_context* ctx);

/// Bytes over all layers.
MemoryUsage memory_usage(const llama_context* ctx);

/// The uncompressed state after an exact prefill, to start several specs from. Immutable; shares nothing with the
/// context.
class Snapshot;
Result<std::shared_ptr<const Snapshot>> snapshot(const llama_context* ctx);

/// Replaces the cache's content by the snapshot's, under another spec. llama.cpp's own cells are the caller's to bring
/// back to the prompt with llama_memory_seq_rm.
Status restore(llama_context* ctx, const std::shared_ptr<const Snapshot>& snapshot, const Spec& spec);

/// Forgets everything; call it with llama_memory_clear.
void clear(llama_context* ctx);

}  // namespace mikv::llama
