// Registry: which llama.cpp contexts, schedulers, memories and cache buffers are ours.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "address_space.hpp"
#include "binding.hpp"

namespace mikv::llama {

class Registry {
 public:
  static Registry& get();

  void add(llama_context* context, std::unique_ptr<Binding> binding);
  void remove(llama_context* context);
  Binding* of_context(const llama_context* context);
  Binding* of_memory(llama_memory_t memory);

  /// Sums over all contexts; the spec of the last one that was published. `n_refused` counts requests.
  struct Totals {
    MemoryUsage usage;
    Figures figures;  ///< with those of contexts that are gone
    uint64_t peak_bytes = 0, budget = 0, n_contexts = 0;
    uint64_t n_lowered_sequences = 0;
    std::string spec;
  };
  /// Takes the figures of a context for totals(). Called on a thread that may use the context.
  /// Returns false if it is left out (Occasion::step).
  bool publish(const Binding& binding, Occasion occasion);
  /// Sums what was published: any thread may call it at any time.
  Totals totals();

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

  struct Published {
    MemoryUsage usage;
    Figures figures;
    uint64_t n_lowered_sequences = 0;
    std::chrono::steady_clock::time_point due{};  ///< for steps
  };
  std::map<const Binding*, Published> published_;
  Figures of_the_gone_;
  std::string last_spec_;
  uint64_t peak_bytes_ = 0, budget_ = 0;
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
