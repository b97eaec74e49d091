#include "interpose/registry.hpp"

#include <utility>

namespace mikv::llama {
namespace {

template <typename Map, typename Key>
Binding* find(const Map& map, Key key) {
  const auto found = map.find(key);
  return found == map.end() ? nullptr : &*found->second;
}

}  // namespace

Registry& Registry::get() {
  static Registry& registry = *new Registry;  // globals of a program may free their contexts after ours are gone
  return registry;
}

void Registry::add(llama_context* context, std::unique_ptr<Binding> binding) {
  const std::lock_guard lock(mutex_);
  if (const llama_memory_t memory = llama_get_memory(context)) memories_[memory] = binding.get();
  binding->set_context(context);
  contexts_[context] = std::move(binding);
}

std::unique_ptr<Binding> Registry::take(llama_context* context) {
  const std::lock_guard lock(mutex_);
  const auto found = contexts_.find(context);
  if (found == contexts_.end()) return nullptr;
  const auto ours = [&](const auto& entry) { return entry.second == found->second.get(); };
  std::erase_if(memories_, ours);
  std::erase_if(schedulers_, ours);
  std::unique_ptr<Binding> binding = std::move(found->second);
  contexts_.erase(found);
  return binding;
}

Binding* Registry::of_context(const llama_context* context) {
  const std::lock_guard lock(mutex_);
  return find(contexts_, context);
}

Binding* Registry::of_memory(llama_memory_t memory) {
  const std::lock_guard lock(mutex_);
  return find(memories_, memory);
}

Binding* Registry::of_scheduler(ggml_backend_sched_t scheduler) {
  const std::lock_guard lock(mutex_);
  if (Binding* current = CurrentBinding::get()) schedulers_[scheduler] = current;
  return find(schedulers_, scheduler);
}

void Registry::forget_scheduler(ggml_backend_sched_t scheduler) {
  const std::lock_guard lock(mutex_);
  schedulers_.erase(scheduler);
}

void Registry::add_cache_buffer(ggml_backend_buffer_t buffer, AddressSpace region) {
  const std::lock_guard lock(mutex_);
  cache_buffers_[buffer] = std::move(region);
}

AddressSpace Registry::forget_cache_buffer(ggml_backend_buffer_t buffer) {
  const std::lock_guard lock(mutex_);
  auto found = cache_buffers_.extract(buffer);
  return found ? std::move(found.mapped()) : AddressSpace();
}

bool Registry::is_cache_buffer(ggml_backend_buffer_t buffer) {
  const std::lock_guard lock(mutex_);
  return cache_buffers_.contains(buffer);
}

}  // namespace mikv::llama
