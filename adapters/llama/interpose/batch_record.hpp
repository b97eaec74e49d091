// Batches: which sequences a batch's tokens belong to, which tokens want logits, and their ids. Graphs do not say.
#pragma once

#include <cstdint>

#include <functional>
#include <vector>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

struct BatchRecord {
  Batch batch;
  std::vector<llama_token> ids;  ///< of the tokens of the batch; LLAMA_TOKEN_NULL for an embedding
};

/// Converts a batch with public fields. Leaves out positions: llama.cpp keeps the cells.
BatchRecord batch_of(const llama_batch& batch);

/// Records the calls that fill a llama_batch_ext, which is opaque: calls edit(record) with the batch's record, made at
/// the first call. Thread-safe.
void edit_record(const llama_batch_ext* batch, const std::function<void(BatchRecord& record)>& edit);
void forget_record(const llama_batch_ext* batch);
BatchRecord recorded(const llama_batch_ext* batch);

}  // namespace mikv::llama
