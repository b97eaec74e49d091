// The functions of llama.cpp and ggml that we define in their place. The dynamic linker finds ours first because our
// code comes before libllama in its search order; each one does its part and calls the next definition. Contexts that
// did not come from init_context pass through untouched.
#include <dlfcn.h>

#include <exception>
#include <functional>
#include <memory>

#include "graph/graph_rewrite.hpp"
#include "interpose/batch_record.hpp"
#include "interpose/cache_region.hpp"
#include "interpose/drop_in.hpp"
#include "interpose/next_definition.hpp"
#include "interpose/registry.hpp"
#include "say.hpp"
#include "state/cell_capture.hpp"
#include "state/state_calls.hpp"

using mikv::kAllSequences;
using mikv::Status;
using namespace mikv::llama;  // this file defines llama.cpp's own names outside of it

namespace {

// llama.cpp calls these functions from C and from code that expects no exceptions: none leaves them. What ours cannot
// do for want of memory is `failed`.
template <typename T, typename Call>
T guarded(T failed, Call call) noexcept {
  try {
    return call();
  } catch (const std::exception& error) {
    say_failed("a call of llama.cpp failed", error.what());
    return failed;
  }
}

template <typename Call>
void guarded(Call call) noexcept {
  guarded(false, [&] {
    call();
    return true;
  });
}

bool prepare(ggml_backend_sched_t scheduler, ggml_cgraph* graph) {
  return guarded(false, [&] {
    Binding* binding = Registry::get().of_scheduler(scheduler);
    return !binding || rewrite_graph(scheduler, graph, *binding);
  });
}

bool is_cache_tensor(const ggml_tensor* tensor) {
  return tensor->buffer && Registry::get().is_cache_buffer(tensor->buffer);
}

// llama_decode's code for a failure.
constexpr int32_t kFailed = -3;

template <typename MakeBatch, typename Call>
int32_t run_step(llama_context* context, MakeBatch make_batch, Call call) {
  Binding* binding = Registry::get().of_context(context);
  if (!binding) return call();
  const CurrentBinding scope(binding);
  const int32_t refused = guarded(kFailed, [&] { return binding->begin_step(make_batch()); });
  if (refused) return refused;
  const int32_t status = call();
  return guarded(false, [&] { return binding->end_step(status); }) ? status : kFailed;
}

// A call that says what sequences hold: an error cannot be returned, so it is printed.
template <typename Call>
void tell(Binding* binding, Call call) {
  if (!binding) return;
  guarded([&] {
    binding->saved_state() = {};
    binding->note(call(binding->cache()));
    binding->note_figures();
  });
}

// The result of ours for a context of ours, 0 or false if it fails, else that of llama.cpp's own.
template <typename Ours, typename Stock>
auto of_ours(llama_context* context, Ours ours, Stock stock) {
  Binding* binding = Registry::get().of_context(context);
  if (!binding) return stock();
  return guarded(decltype(stock()){}, [&]() -> decltype(stock()) {
    const auto result = ours(*binding);
    binding->note_figures();
    return result;
  });
}

// What a batch that only llama.cpp can look into holds.
void record(const llama_batch_ext* batch, const std::function<void(BatchRecord&)>& edit) {
  guarded([&] { edit_record(batch, edit); });
}

// A token that was added to it.
int32_t recorded_token(const llama_batch_ext* batch, int32_t index, llama_seq_id sequence,
                       llama_token id = LLAMA_TOKEN_NULL) {
  if (index < 0) return index;
  record(batch, [&](BatchRecord& of) {
    of.batch.tokens.push_back({sequence, false});
    of.ids.push_back(id);
  });
  return index;
}

bool recorded_output(const llama_batch_ext* batch, bool set, int32_t index, bool value) {
  if (!set) return set;
  record(batch, [&](BatchRecord& of) {
    if (size_t(index) < of.batch.tokens.size()) of.batch.tokens[size_t(index)].output = value;
  });
  return set;
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
  const ggml_tensor* first = ggml_get_first_tensor(context);
  if (CurrentBinding::get() && first && cache_layer(first) >= 0) {
    return guarded(ggml_backend_buffer_t{}, [&] { return reserve_cache_tensors(context, type); });
  }
  return MIKV_NEXT(ggml_backend_alloc_ctx_tensors_from_buft)(context, type);
}

void ggml_backend_buffer_free(ggml_backend_buffer_t buffer) {
  const AddressSpace region = Registry::get().forget_cache_buffer(buffer);  // given back afterwards
  MIKV_NEXT(ggml_backend_buffer_free)(buffer);
}

// Pages of llama.cpp's own cache that nobody writes cost address space only; clearing them would make them real.
void ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
  if (Registry::get().is_cache_buffer(buffer)) return;
  MIKV_NEXT(ggml_backend_buffer_clear)(buffer, value);
}

// Saving and loading a state reads and writes the rows of cells: what is wanted is which ones.
void ggml_backend_tensor_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
  if (is_cache_tensor(tensor) && CellCapture::note(tensor, data, offset, size)) return;
  MIKV_NEXT(ggml_backend_tensor_get)(tensor, data, offset, size);
}

void ggml_backend_tensor_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  if (is_cache_tensor(tensor) && CellCapture::note(tensor, data, offset, size)) return;
  MIKV_NEXT(ggml_backend_tensor_set)(tensor, data, offset, size);
}

// A stream that is copied to another: llama_memory_seq_cp has done it already, on our side.
void ggml_backend_tensor_copy(const ggml_tensor* from, ggml_tensor* to) {
  if (is_cache_tensor(from)) return;
  MIKV_NEXT(ggml_backend_tensor_copy)(from, to);
}

llama_context* llama_init_from_model(llama_model* model, llama_context_params params) {
  return guarded(static_cast<llama_context*>(nullptr), [&] { return init_drop_in(model, params); });
}

int32_t llama_decode(llama_context* context, llama_batch batch) {
  return run_step(context, [&] { return batch_of(batch); }, [&] { return MIKV_NEXT(llama_decode)(context, batch); });
}

int32_t llama_encode(llama_context* context, llama_batch batch) {
  const CurrentBinding scope(Registry::get().of_context(context));
  return MIKV_NEXT(llama_encode)(context, batch);
}

int32_t llama_process(llama_context* context, llama_process_type type, llama_batch_ext* batch) {
  if (type == LLAMA_PROCESS_TYPE_DECODE) {
    return run_step(
        context, [&] { return recorded(batch); }, [&] { return MIKV_NEXT(llama_process)(context, type, batch); });
  }
  const CurrentBinding scope(Registry::get().of_context(context));
  return MIKV_NEXT(llama_process)(context, type, batch);
}

// ---------------------------------------------------------------- what batches hold

llama_batch_ext* llama_batch_ext_init(llama_context* context) {
  llama_batch_ext* batch = MIKV_NEXT(llama_batch_ext_init)(context);
  if (batch) record(batch, [](BatchRecord& of) { of = {}; });
  return batch;
}

void llama_batch_ext_free(llama_batch_ext* batch) {
  forget_record(batch);
  MIKV_NEXT(llama_batch_ext_free)(batch);
}

void llama_batch_ext_clear(llama_batch_ext* batch) {
  record(batch, [](BatchRecord& of) { of = {}; });
  MIKV_NEXT(llama_batch_ext_clear)(batch);
}

int32_t llama_batch_ext_add(llama_batch_ext* batch, llama_seq_id sequence) {
  return recorded_token(batch, MIKV_NEXT(llama_batch_ext_add)(batch, sequence), sequence);
}

int32_t llama_batch_ext_add_token(llama_batch_ext* batch, llama_seq_id sequence, llama_token id) {
  return recorded_token(batch, MIKV_NEXT(llama_batch_ext_add_token)(batch, sequence, id), sequence, id);
}

int32_t llama_batch_ext_add_embd(llama_batch_ext* batch, llama_seq_id sequence, llama_embd embedding) {
  return recorded_token(batch, MIKV_NEXT(llama_batch_ext_add_embd)(batch, sequence, embedding), sequence);
}

bool llama_batch_ext_add_seq(llama_batch_ext* batch, int32_t index, llama_seq_id sequence) {
  const bool added = MIKV_NEXT(llama_batch_ext_add_seq)(batch, index, sequence);
  if (added) record(batch, [&](BatchRecord& of) { of.batch.shared.push_back({uint32_t(index), sequence}); });
  return added;
}

bool llama_batch_ext_set_output_logits(llama_batch_ext* batch, int32_t index, bool value) {
  return recorded_output(batch, MIKV_NEXT(llama_batch_ext_set_output_logits)(batch, index, value), index, value);
}

bool llama_batch_ext_set_output_embd(llama_batch_ext* batch, int32_t index, bool value) {
  return recorded_output(batch, MIKV_NEXT(llama_batch_ext_set_output_embd)(batch, index, value), index, value);
}

// ---------------------------------------------------------------- what sequences hold

void llama_memory_clear(llama_memory_t memory, bool data) {
  tell(Registry::get().of_memory(memory), [](mikv::Context& cache) {
    cache.clear();
    return Status();
  });
  MIKV_NEXT(llama_memory_clear)(memory, data);
}

bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id sequence, llama_pos p0, llama_pos p1) {
  const bool removed = MIKV_NEXT(llama_memory_seq_rm)(memory, sequence, p0, p1);
  if (!removed) return removed;
  const llama_seq_id of_all = sequence < 0 ? kAllSequences : sequence;
  tell(Registry::get().of_memory(memory), [&](mikv::Context& cache) {
    const Status told = cache.remove(of_all, p0, p1);
    return told && p0 <= 0 && p1 < 0 ? cache.forget_removed() : told;  // all of it: nothing may follow that frees it
  });
  return removed;
}

void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
  tell(Registry::get().of_memory(memory), [&](mikv::Context& cache) { return cache.copy(from, to, p0, p1); });
  MIKV_NEXT(llama_memory_seq_cp)(memory, from, to, p0, p1);
}

void llama_memory_seq_keep(llama_memory_t memory, llama_seq_id sequence) {
  MIKV_NEXT(llama_memory_seq_keep)(memory, sequence);
  tell(Registry::get().of_memory(memory), [&](mikv::Context& cache) { return cache.keep(sequence); });
}

void llama_memory_seq_add(llama_memory_t memory, llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
  MIKV_NEXT(llama_memory_seq_add)(memory, sequence, p0, p1, delta);
  tell(Registry::get().of_memory(memory), [&](mikv::Context& cache) { return cache.shift(sequence, p0, p1, delta); });
}

// ---------------------------------------------------------------- states and sessions

size_t llama_state_get_size(llama_context* context) {
  return of_ours(
      context, [&](Binding& binding) { return state_bytes(binding, kAllSequences, 0).size(); },
      [&] { return MIKV_NEXT(llama_state_get_size)(context); });
}

size_t llama_state_get_data(llama_context* context, uint8_t* to, size_t size) {
  return of_ours(
      context, [&](Binding& binding) { return copy_state(binding, kAllSequences, 0, to, size); },
      [&] { return MIKV_NEXT(llama_state_get_data)(context, to, size); });
}

size_t llama_state_set_data(llama_context* context, const uint8_t* from, size_t size) {
  return of_ours(
      context, [&](Binding& binding) { return take_state(binding, kAllSequences, 0, {from, size}); },
      [&] { return MIKV_NEXT(llama_state_set_data)(context, from, size); });
}

size_t llama_state_seq_get_size_ext(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags) {
  return of_ours(
      context, [&](Binding& binding) { return state_bytes(binding, sequence, flags).size(); },
      [&] { return MIKV_NEXT(llama_state_seq_get_size_ext)(context, sequence, flags); });
}

size_t llama_state_seq_get_data_ext(llama_context* context, uint8_t* to, size_t size, llama_seq_id sequence,
                                    llama_state_seq_flags flags) {
  return of_ours(
      context, [&](Binding& binding) { return copy_state(binding, sequence, flags, to, size); },
      [&] { return MIKV_NEXT(llama_state_seq_get_data_ext)(context, to, size, sequence, flags); });
}

size_t llama_state_seq_set_data_ext(llama_context* context, const uint8_t* from, size_t size, llama_seq_id sequence,
                                    llama_state_seq_flags flags) {
  return of_ours(
      context, [&](Binding& binding) { return take_state(binding, sequence, flags, {from, size}); },
      [&] { return MIKV_NEXT(llama_state_seq_set_data_ext)(context, from, size, sequence, flags); });
}

size_t llama_state_seq_get_size(llama_context* context, llama_seq_id sequence) {
  return llama_state_seq_get_size_ext(context, sequence, 0);
}

size_t llama_state_seq_get_data(llama_context* context, uint8_t* to, size_t size, llama_seq_id sequence) {
  return llama_state_seq_get_data_ext(context, to, size, sequence, 0);
}

size_t llama_state_seq_set_data(llama_context* context, const uint8_t* from, size_t size, llama_seq_id sequence) {
  return llama_state_seq_set_data_ext(context, from, size, sequence, 0);
}

bool llama_state_save_file(llama_context* context, const char* path, const llama_token* tokens, size_t n_tokens) {
  return of_ours(
      context, [&](Binding& binding) { return save_file(binding, kAllSequences, path, {tokens, n_tokens}) > 0; },
      [&] { return MIKV_NEXT(llama_state_save_file)(context, path, tokens, n_tokens); });
}

bool llama_state_load_file(llama_context* context, const char* path, llama_token* tokens, size_t capacity,
                           size_t* n_tokens) {
  return of_ours(
      context,
      [&](Binding& binding) { return load_file(binding, kAllSequences, path, tokens, capacity, n_tokens) > 0; },
      [&] { return MIKV_NEXT(llama_state_load_file)(context, path, tokens, capacity, n_tokens); });
}

size_t llama_state_seq_save_file(llama_context* context, const char* path, llama_seq_id sequence,
                                 const llama_token* tokens, size_t n_tokens) {
  return of_ours(
      context, [&](Binding& binding) { return save_file(binding, sequence, path, {tokens, n_tokens}); },
      [&] { return MIKV_NEXT(llama_state_seq_save_file)(context, path, sequence, tokens, n_tokens); });
}

size_t llama_state_seq_load_file(llama_context* context, const char* path, llama_seq_id sequence, llama_token* tokens,
                                 size_t capacity, size_t* n_tokens) {
  return of_ours(
      context, [&](Binding& binding) { return load_file(binding, sequence, path, tokens, capacity, n_tokens); },
      [&] { return MIKV_NEXT(llama_state_seq_load_file)(context, path, sequence, tokens, capacity, n_tokens); });
}

void llama_free(llama_context* context) {
  const std::unique_ptr<Binding> binding = Registry::get().take(context);  // it outlives the context
  if (binding) {
    guarded([&] {
      binding->say_what_was_measured();
      binding->finish_report();
    });
  }
  MIKV_NEXT(llama_free)(context);
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
