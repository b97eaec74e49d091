// Batches: which sequences a batch's tokens belong to, and which tokens want logits. Graphs do not say.
#pragma once

#include <cstdint>

#include <functional>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

/// Converts a batch with public fields. Leaves out positions: llama.cpp keeps the cells.
Batch batch_of(const llama_batch& batch);

/// Records the calls that fill a llama_batch_ext, which is opaque: calls edit(record) with the batch's record, made at
/// the first call. Thread-safe.
void edit_record(const llama_batch_ext* batch, const std::function<void(Batch& record)>& edit);
void forget_record(const llama_batch_ext* batch);
Batch recorded(const llama_batch_ext* batch);

}  // namespace mikv::llama
