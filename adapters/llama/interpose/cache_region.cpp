#include "interpose/cache_region.hpp"

#include <utility>

#include "interpose/registry.hpp"

namespace mikv::llama {

ggml_backend_buffer_t reserve_cache_tensors(ggml_context* context, ggml_backend_buffer_type_t type) {
  const size_t alignment = ggml_backend_buft_get_alignment(type);
  size_t bytes = alignment;
  for (ggml_tensor* t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
    if (t->view_src) continue;
    bytes += (ggml_backend_buft_get_alloc_size(type, t) + alignment - 1) / alignment * alignment;
  }
  AddressSpace region = reserve_addresses(bytes);
  if (!region) {
    CurrentBinding::get()->cache().fail(no_addresses(bytes, "the context's cells"));
    return nullptr;
  }
  const ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(region.get(), bytes);
  ggml_tallocr place = ggml_tallocr_new(buffer);
  for (ggml_tensor* t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
    const ggml_status status = t->view_src ? ggml_backend_view_init(t) : ggml_tallocr_alloc(&place, t);
    if (status != GGML_STATUS_SUCCESS) {
      ggml_backend_buffer_free(buffer);
      return nullptr;
    }
  }
  Registry::get().add_cache_buffer(buffer, std::move(region));
  return buffer;
}

}  // namespace mikv::llama
