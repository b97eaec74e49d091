// The functions of llama.cpp and ggml that we define in their place. The dynamic linker finds ours first because our code
// comes before libllama in its search order; each one does its part and calls the next definition.
// Contexts that did not come from init_context pass through untouched.
#include <dlfcn.h>

#include "ggml-alloc.h"
#include "graph_rewrite.hpp"
#include "registry.hpp"

using mikv::llama::Binding;
using mikv::llama::CurrentBinding;
using mikv::llama::Registry;

namespace {

// The definition that ours hides. Looked up once for each function.
template <typename Function>
Function next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}
#define MIKV_NEXT(name) ([] { static const auto real = next(&::name, #name); return real; }())

bool prepare(ggml_backend_sched_t scheduler, ggml_cgraph* graph) {
  Binding* binding = Registry::get().of_scheduler(scheduler);
  return !binding || mikv::llama::rewrite_graph(scheduler, graph, *binding);
}

}  // namespace

extern "C" {

bool ggml_backend_sched_alloc_graph(ggml_backend_sched_t scheduler, ggml_cgraph* graph) {
  return prepare(scheduler, graph) && MIKV_NEXT(ggml_backend_sched_alloc_graph)(scheduler, graph);
}

bool ggml_backend_sched_reserve(ggml_backend_sched_t scheduler, ggml_cgraph* graph) {
  return prepare(scheduler, graph) && MIKV_NEXT(ggml_backend_sched_reserve)(scheduler, graph);
}

void ggml_backend_sched_reserve_size(ggml_backend_sched_t scheduler, ggml_cgraph* graph, size_t* sizes) {
  prepare(scheduler, graph);
  MIKV_NEXT(ggml_backend_sched_reserve_size)(scheduler, graph, sizes);
}

void ggml_backend_sched_split_graph(ggml_backend_sched_t scheduler, ggml_cgraph* graph) {
  prepare(scheduler, graph);
  MIKV_NEXT(ggml_backend_sched_split_graph)(scheduler, graph);
}

void ggml_backend_sched_free(ggml_backend_sched_t scheduler) {
  Registry::get().forget_scheduler(scheduler);
  MIKV_NEXT(ggml_backend_sched_free)(scheduler);
}

ggml_backend_buffer_t ggml_backend_alloc_ctx_tensors_from_buft(ggml_context* context, ggml_backend_buffer_type_t type) {
  const ggml_backend_buffer_t buffer = MIKV_NEXT(ggml_backend_alloc_ctx_tensors_from_buft)(context, type);
  Binding* binding = CurrentBinding::get();
  const ggml_tensor* first = ggml_get_first_tensor(context);
  if (binding && buffer && first && mikv::llama::cache_layer(first) >= 0) {
    Registry::get().add_cache_buffer(buffer, binding);
  }
  return buffer;
}

// Pages of llama.cpp's own cache that nobody writes cost address space only; clearing them would make them real.
void ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
  if (Registry::get().is_cache_buffer(buffer)) return;
  MIKV_NEXT(ggml_backend_buffer_clear)(buffer, value);
}

int32_t llama_decode(llama_context* context, llama_batch batch) {
  Binding* binding = Registry::get().of_context(context);
  const CurrentBinding scope(binding);
  if (binding) binding->begin_step(batch);
  const int32_t status = MIKV_NEXT(llama_decode)(context, batch);
  return binding && status == 0 && !binding->failure() ? -3 : status;
}

int32_t llama_encode(llama_context* context, llama_batch batch) {
  const CurrentBinding scope(Registry::get().of_context(context));
  return MIKV_NEXT(llama_encode)(context, batch);
}

int32_t llama_process(llama_context* context, llama_process_type type, llama_batch_ext* batch) {
  Binding* binding = Registry::get().of_context(context);
  const CurrentBinding scope(binding);
  if (binding) binding->begin_step_unknown();
  const int32_t status = MIKV_NEXT(llama_process)(context, type, batch);
  return binding && status == 0 && !binding->failure() ? -3 : status;
}

void llama_memory_clear(llama_memory_t memory, bool data) {
  if (Binding* binding = Registry::get().of_memory(memory)) binding->clear();
  MIKV_NEXT(llama_memory_clear)(memory, data);
}

void llama_free(llama_context* context) {
  MIKV_NEXT(llama_free)(context);
  Registry::get().remove(context);
}

}  // extern "C"

namespace mikv::llama {

Status check_interposition() {
  // The name as libllama sees it must be our definition.
  void* seen = dlsym(RTLD_DEFAULT, "ggml_backend_sched_alloc_graph");
  if (seen == reinterpret_cast<void*>(&::ggml_backend_sched_alloc_graph)) return {};
  return Error{"llama.cpp does not call mikv's functions; link mikv before a shared libllama"};
}

}  // namespace mikv::llama
