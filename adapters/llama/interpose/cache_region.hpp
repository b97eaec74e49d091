// llama.cpp's own buffers for K and V: address space without memory, because nothing is ever stored there.
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace mikv::llama {

/// Places the tensors of `context`, llama.cpp's K and V, in a reservation without memory, which may be larger than the
/// machine's memory. Returns null if there is no address space.
ggml_backend_buffer_t reserve_cache_tensors(ggml_context* context, ggml_backend_buffer_type_t type);

}  // namespace mikv::llama
