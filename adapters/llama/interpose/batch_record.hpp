// Batches: which sequences a batch's tokens belong to, and which tokens want logits. Graphs do not tell.
#pragma once

#include <cstdint>

#include <functional>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

/// Of a batch whose fields are public. Positions are llama.cpp's own affair: it keeps the cells.
Batch batch_of(const llama_batch& batch);

/// llama_batch_ext is opaque: what it holds is known from the calls that fill it. Calls edit(record) with the batch's
/// record, which is made when first asked for. Safe from several threads.
void edit_record(const llama_batch_ext* batch, const std::function<void(Batch& record)>& edit);
void forget_record(const llama_batch_ext* batch);
Batch recorded(const llama_batch_ext* batch);

}  // namespace mikv::llama
