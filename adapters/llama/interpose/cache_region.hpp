// llama.cpp's own buffers for K and V: address space without memory, as nothing is ever stored there.
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace mikv::llama {

/// Gives the tensors of `context`, llama.cpp's K and V, addresses in a reservation that the system commits no memory
/// for: it may be larger than the machine's memory. Null if there is no address space.
ggml_backend_buffer_t reserve_cache_tensors(ggml_context* context, ggml_backend_buffer_type_t type);

}  // namespace mikv::llama
