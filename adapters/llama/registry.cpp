#include "registry.hpp"

#include <algorithm>

namespace mikv::llama {

Registry& Registry::get() {
  static Registry registry;
  return registry;
}

void Registry::add(llama_context* context, std::unique_ptr<Binding> binding) {
  const std::lock_guard lock(mutex_);
  if (const llama_memory_t memory = llama_get_memory(context)) memories_[memory] = binding.get();
  binding->set_context(context);
  contexts_[context] = std::move(binding);
}

void Registry::remove(llama_context* context) {
  const std::lock_guard lock(mutex_);
  const auto found = contexts_.find(context);
  if (found == contexts_.end()) return;
  const auto ours = [&](const auto& entry) { return entry.second == found->second.get(); };
  std::erase_if(memories_, ours);
  std::erase_if(schedulers_, ours);
  contexts_.erase(found);
}

Binding* Registry::of_context(const llama_context* context) {
  const std::lock_guard lock(mutex_);
  const auto found = contexts_.find(context);
  return found == contexts_.end() ? nullptr : found->second.get();
}

Binding* Registry::of_memory(llama_memory_t memory) {
  const std::lock_guard lock(mutex_);
  const auto found = memories_.find(memory);
  return found == memories_.end() ? nullptr : found->second;
}

Registry::Totals Registry::totals() {
  const std::lock_guard lock(mutex_);
  Totals totals;
  for (const auto& [context, binding] : contexts_) {
    totals.usage += binding->memory_usage();
    totals.budget = std::max(totals.budget, binding->budget());
    ++totals.n_contexts;
    totals.n_steps += binding->n_steps();
    totals.n_lowered += binding->n_lowered();
    totals.n_refused += binding->n_refused();
    totals.spec = binding->spec().to_string();
  }
  return totals;
}

Binding* Registry::of_scheduler(ggml_backend_sched_t scheduler) {
  const std::lock_guard lock(mutex_);
  if (Binding* current = CurrentBinding::get()) schedulers_[scheduler] = current;
  const auto found = schedulers_.find(scheduler);
  return found == schedulers_.end() ? nullptr : found->second;
}

void Registry::forget_scheduler(ggml_backend_sched_t scheduler) {
  const std::lock_guard lock(mutex_);
  schedulers_.erase(scheduler);
}

void Registry::add_cache_buffer(ggml_backend_buffer_t buffer, size_t mapped_bytes) {
  const std::lock_guard lock(mutex_);
  cache_buffers_[buffer] = mapped_bytes;
}

size_t Registry::forget_cache_buffer(ggml_backend_buffer_t buffer) {
  const std::lock_guard lock(mutex_);
  const auto found = cache_buffers_.find(buffer);
  if (found == cache_buffers_.end()) return 0;
  const size_t mapped_bytes = found->second;
  cache_buffers_.erase(found);
  return mapped_bytes;
}

bool Registry::is_cache_buffer(ggml_backend_buffer_t buffer) {
  const std::lock_guard lock(mutex_);
  return cache_buffers_.contains(buffer);
}

}  // namespace mikv::llama
