// Registry: which llama.cpp contexts, schedulers, memories and cache buffers are ours.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "address_space.hpp"
#include "binding.hpp"

namespace mikv::llama {

class Registry {
 public:
  static Registry& get();

  void add(llama_context* context, std::unique_ptr<Binding> binding);
  /// Forgets the context, before another one may have its address; null if it is not ours.
  std::unique_ptr<Binding> take(llama_context* context);
  Binding* of_context(const llama_context* context);
  Binding* of_memory(llama_memory_t memory);

  /// A scheduler belongs to the context that is created or run on this thread when it is first seen.
  Binding* of_scheduler(ggml_backend_sched_t scheduler);
  void forget_scheduler(ggml_backend_sched_t scheduler);

  /// Adds a buffer of llama.cpp's own K and V, which is empty; `region` is its memory.
  void add_cache_buffer(ggml_backend_buffer_t buffer, AddressSpace region);
  bool is_cache_buffer(ggml_backend_buffer_t buffer);
  /// Forgets the buffer and returns its region, to be released after it is freed; empty if it is not one of them.
  AddressSpace forget_cache_buffer(ggml_backend_buffer_t buffer);

 private:
  std::mutex mutex_;
  std::map<const llama_context*, std::unique_ptr<Binding>> contexts_;
  std::map<llama_memory_t, Binding*> memories_;
  std::map<ggml_backend_sched_t, Binding*> schedulers_;
  std::map<ggml_backend_buffer_t, AddressSpace> cache_buffers_;
};

/// The binding whose llama.cpp call runs on this thread; null outside of one.
class CurrentBinding {
 public:
  explicit CurrentBinding(Binding* binding) : before_(current_) { current_ = binding; }
  ~CurrentBinding() { current_ = before_; }
  CurrentBinding(const CurrentBinding&) = delete;
  CurrentBinding& operator=(const CurrentBinding&) = delete;
  static Binding* get() { return current_; }

 private:
  static inline thread_local Binding* current_ = nullptr;
  Binding* before_;
};

/// An error if llama.cpp does not call our functions in place of ggml's (wrong link order, static llama.cpp).
Status check_interposition();

}  // namespace mikv::llama
