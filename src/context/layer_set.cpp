#include "context/layer_set.hpp"

#include <algorithm>
#include <mutex>

#include "layer/share_bits.hpp"
#include "layer/share_jobs.hpp"

namespace mikv::context {
namespace {

// Keeps the first error.
void note(Status& first, const Status& status) {
  if (first && !status) first = Error::copy_of(status.error());  // in a thread's job, which must not throw
}

}  // namespace

void LayerSet::go_to(ContextLayer* layer) {
  if (at_ && at_ != layer) at_->cache->encode_staged();
  at_ = layer;
}

ContextLayer* LayerSet::find(int index) {
  const auto found = layers.find(index);
  return found == layers.end() ? nullptr : &found->second;
}

uint64_t LayerSet::n_kv_heads() const {
  uint64_t n = 0;
  for (const auto& [index, layer] : layers) n += layer.cache->shape().n_kv_heads;
  return n;
}

bool LayerSet::is_empty(SegmentId segment) const {
  return std::ranges::all_of(layers, [&](const auto& entry) { return entry.second.cache->n_cells(segment) == 0; });
}

LayerSet::Most LayerSet::most_compressed(std::span<const SegmentId> segments) const {
  Most most;
  for (const auto& [index, layer] : layers) {
    uint64_t of_layer = 0;
    for (const SegmentId segment : segments) {
      const SegmentCount count = layer.count(segment);
      of_layer += count.n_cells - count.n_staged;
    }
    most.n_compressed = std::max(most.n_compressed, of_layer);
    most.n_cells = std::max<uint64_t>(most.n_cells, layer.n_cells);
  }
  return most;
}

bool LayerSet::any_full(SegmentId segment, uint32_t n_tokens) const {
  return std::ranges::any_of(layers, [&](const auto& entry) {
    return is_full(entry.second.cache->spec(), entry.second.count(segment), n_tokens);
  });
}

bool LayerSet::any_staged(SegmentId segment, uint32_t n_tokens) const {
  return std::ranges::any_of(layers,
                             [&](const auto& entry) { return entry.second.count(segment).n_staged >= n_tokens; });
}

bool LayerSet::is_lowered(SegmentId segment) const {
  return std::ranges::any_of(layers, [&](const auto& entry) {
    const LayerCache& cache = *entry.second.cache;
    const Spec &held = cache.spec_of(segment), &asked = cache.spec();
    return cache.n_cells(segment) &&
           (held.keep < asked.keep || held.bits < asked.bits || format_bits(held.lo) < format_bits(asked.lo));
  });
}

uint64_t LayerSet::bytes_of(SegmentId segment, const policy::Rung* rung) const {
  uint64_t bytes = 0;
  for (const auto& [index, layer] : layers) {
    const uint64_t now = layer.cache->bytes_of(segment);
    const int64_t freed = rung ? layer.cache->freed_by(segment, *rung, false) : 0;
    bytes += freed > 0 ? now - std::min(now, uint64_t(freed)) : now;
  }
  return bytes;
}

std::vector<LayerCache*> LayerSet::sharing(SegmentId segment, uint32_t from, uint32_t n_to_come) {
  std::vector<LayerCache*> caches;
  for (const auto& [index, layer] : layers) {
    const SegmentCount count = layer.count(segment);
    if (count.compressed()) return {};  // shared before, with the layers that are not compressed yet
    if (count.n_staged && is_ready(from, count, n_to_come)) caches.push_back(layer.cache.get());
  }
  return caches;
}

Status LayerSet::share_bits(SegmentId segment, uint32_t from, uint32_t n_to_come, uint32_t n_threads) {
  return mikv::share_bits(sharing(segment, from, n_to_come), segment, n_threads);
}

Result<uint64_t> LayerSet::weigh(SegmentId segment, uint32_t from, uint64_t n_most, uint32_t n_threads) {
  return weigh_heads(sharing(segment, from, 0), segment, n_most, n_threads);
}

Status LayerSet::commit(SegmentId segment, uint32_t from, uint32_t n_threads) {
  std::vector<LayerCache*> caches;
  for (const auto& [index, layer] : layers) caches.push_back(layer.cache.get());
  return LayerCache::commit(caches, segment, from, n_threads);
}

Status LayerSet::on_all(uint32_t n_threads, const std::function<Status(LayerCache&)>& work) {
  std::vector<LayerCache*> caches;
  for (const auto& [index, layer] : layers) caches.push_back(layer.cache.get());
  std::mutex mutex;
  Status first;
  share_jobs(caches.size(), n_threads, [&](const auto& next) {
    for (size_t i; (i = next()) < caches.size();) {
      const Status status = work(*caches[i]);
      const std::lock_guard lock(mutex);
      note(first, status);
    }
  });
  return first;
}

Status LayerSet::lower(std::span<const SegmentId> segments, const policy::Rung& rung, uint32_t n_threads) {
  return on_all(n_threads, [&](LayerCache& cache) {
    Status first;
    for (const SegmentId segment : segments) note(first, cache.lower(segment, rung));
    return first;
  });
}

void LayerSet::trim(SegmentId segment) {
  for (const auto& [index, layer] : layers) layer.cache->trim(segment);
}

void LayerSet::continue_segment(SegmentId from, SegmentId to) {
  // Where there is no memory for it, the new segment begins as that of any other text does.
  for (const auto& [index, layer] : layers) (void)layer.cache->continue_segment(from, to);
  trim(from);
}

Status LayerSet::copy_segment(SegmentId from, SegmentId to) {
  Status first;
  for (const auto& [index, layer] : layers) note(first, layer.cache->copy_segment(from, to));
  return first;
}

void LayerSet::empty_segment(SegmentId segment) {
  for (const auto& [index, layer] : layers) layer.cache->retain(segment, {});
}

void LayerSet::clear() {
  for (const auto& [index, layer] : layers) layer.cache->clear();
}

MemoryUsage LayerSet::usage() const {
  MemoryUsage usage;
  uint64_t most = 0;
  for (const auto& [index, layer] : layers) {
    const MemoryUsage of = layer.cache->memory_usage();
    const LayerShape& shape = layer.cache->shape();
    most = std::max(most, of.n_elements / (uint64_t{shape.n_kv_heads} * (shape.head_dim_k + shape.head_dim_v)));
    usage += of;
  }
  usage.n_tokens = most;
  return usage;
}

}  // namespace mikv::context
