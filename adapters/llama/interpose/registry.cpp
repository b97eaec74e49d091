#include "interpose/registry.hpp"

#include <algorithm>
#include <utility>

#include "interpose/report.hpp"

namespace mikv::llama {
namespace {

template <typename Map, typename Key>
Binding* find(const Map& map, Key key) {
  const auto found = map.find(key);
  return found == map.end() ? nullptr : &*found->second;
}

void add_figures(Figures& sum, const Figures& figures) {
  sum.n_steps += figures.n_steps;
  sum.n_concessions += figures.n_concessions;
  sum.n_refused += figures.n_refused;
}

}  // namespace

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
  std::unique_lock lock(mutex_);
  const auto found = contexts_.find(context);
  if (found == contexts_.end()) return;
  const auto ours = [&](const auto& entry) { return entry.second == found->second.get(); };
  std::erase_if(memories_, ours);
  std::erase_if(schedulers_, ours);
  bool others_are_reported = false;
  if (const auto published = published_.extract(found->second.get())) {
    add_figures(of_the_gone_, published.mapped().figures);
    others_are_reported = !published_.empty();  // else the report keeps the last figures
  }
  contexts_.erase(found);
  lock.unlock();
  if (others_are_reported) report_changed();
}

Binding* Registry::of_context(const llama_context* context) {
  const std::lock_guard lock(mutex_);
  return find(contexts_, context);
}

Binding* Registry::of_memory(llama_memory_t memory) {
  const std::lock_guard lock(mutex_);
  return find(memories_, memory);
}

bool Registry::publish(const Binding& binding, Occasion occasion) {
  const auto began = std::chrono::steady_clock::now();
  if (occasion == Occasion::step) {
    const std::lock_guard lock(mutex_);
    const auto before = published_.find(&binding);
    if (before != published_.end() && began < before->second.due) return false;
  }
  const Context& cache = binding.cache();
  Published now{cache.memory_usage(), cache.figures(), cache.lowered_sequences().size()};
  now.figures.n_refused =
      occasion == Occasion::last ? binding.refusals().n_with_last() : binding.refusals().n_requests();
  std::string spec = cache.spec().to_string();
  const MemoryAccount* shared = cache.options().account.get();
  const MemoryAccount& account = shared ? *shared : cache.account();
  const auto ended = std::chrono::steady_clock::now();
  now.due = ended + 100 * (ended - began);
  const std::lock_guard lock(mutex_);
  published_[&binding] = now;
  last_spec_ = std::move(spec);
  peak_bytes_ = std::max(peak_bytes_, account.peak());
  budget_ = account.limit();
  return true;
}

Registry::Totals Registry::totals() {
  const std::lock_guard lock(mutex_);
  Totals totals;
  totals.figures = of_the_gone_;
  for (const auto& [binding, published] : published_) {
    totals.usage += published.usage;
    add_figures(totals.figures, published.figures);
    totals.n_lowered_sequences += published.n_lowered_sequences;
  }
  totals.n_contexts = published_.size();
  totals.spec = last_spec_;
  totals.peak_bytes = peak_bytes_ = std::max(peak_bytes_, totals.usage.total());
  totals.budget = budget_;
  return totals;
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
