// Batches: which sequences a batch's tokens belong to, and which tokens want logits. Graphs do not tell.
#pragma once

#include <cstdint>

#include "llama.h"
#include "mikv/context.hpp"

namespace mikv::llama {

/// Of a batch whose fields are public. Positions are llama.cpp's own affair: it keeps the cells.
Batch batch_of(const llama_batch& batch);

/// llama_batch_ext is opaque: what it holds is known from the calls that fill it. Safe from several threads.
void record_clear(const llama_batch_ext* batch);
void record_add(const llama_batch_ext* batch, llama_seq_id sequence);
void record_shared(const llama_batch_ext* batch, uint32_t token, llama_seq_id sequence);
void record_output(const llama_batch_ext* batch, uint32_t token, bool value);
void record_free(const llama_batch_ext* batch);
Batch recorded(const llama_batch_ext* batch);

}  // namespace mikv::llama
