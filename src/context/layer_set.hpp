// LayerSet: the caches of all layers of a context, and operations on a segment in all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "context/commit_rules.hpp"
#include "layer/layer_cache.hpp"
#include "mikv/context.hpp"

namespace mikv::context {

struct ContextLayer {
  std::unique_ptr<LayerCache> cache;
  uint32_t n_cells = 0;  ///< per stream
  uint32_t window = 0;   ///< tokens that a query sees; 0: all
  Rope rope;
  /// Tokens of the batch that the last store() kept: first_row .. next_row - 1.
  uint32_t first_row = 0, next_row = 0;
  std::vector<uint32_t> n_stored;         ///< by stream: tokens of this step; counted where it has punctuation
  bool wants_k = false, wants_v = false;  ///< the last store() lacked it
  bool attended = false;                  ///< in the present step

  SegmentCount count(SegmentId segment) const { return {cache->n_cells(segment), cache->n_staged(segment)}; }
};

class LayerSet {
 public:
  std::map<int, ContextLayer> layers;

  /// The layer of the last store() of a step; null: none yet. Tokens of a layer that the step has left may wait in
  /// bytes.
  void go_to(ContextLayer* layer);

  ContextLayer* find(int index);
  const ContextLayer* find(int index) const { return const_cast<LayerSet*>(this)->find(index); }
  uint64_t n_kv_heads() const;  ///< of all layers

  /// True if the segment has no tokens in any layer.
  bool is_empty(SegmentId segment) const;
  /// Compressed tokens, and cells per stream, of the layer that has most. Layers with a window have fewer.
  struct Most {
    uint64_t n_compressed = 0, n_cells = 0;
  };
  Most most_compressed(std::span<const SegmentId> segments) const;
  bool any_full(SegmentId segment, uint32_t n_tokens) const;
  /// True if a layer has n_tokens or more that nothing of the segment was compressed with.
  bool any_staged(SegmentId segment, uint32_t n_tokens) const;
  /// True if the segment is held in less than its cache's spec says.
  bool is_lowered(SegmentId segment) const;
  uint64_t bytes_of(SegmentId segment, const policy::Rung* rung) const;  ///< lowered to the rung, or as it is

  /// mikv::share_bits() over the layers that commit(segment, from) would compress n_to_come tokens later; nothing
  /// if a layer is compressed already.
  Status share_bits(SegmentId segment, uint32_t from, uint32_t n_to_come, uint32_t n_threads);
  /// weigh_heads() for share_bits(segment, from, 0).
  Result<uint64_t> weigh(SegmentId segment, uint32_t from, uint64_t n_most, uint32_t n_threads);
  /// LayerCache::commit() of all layers.
  Status commit(SegmentId segment, uint32_t from, uint32_t n_threads);
  /// LayerCache::lower() of all the segments, layers on n_threads threads. Returns the first error.
  Status lower(std::span<const SegmentId> segments, const policy::Rung& rung, uint32_t n_threads);
  void trim(SegmentId segment);
  void continue_segment(SegmentId from, SegmentId to);
  Status copy_segment(SegmentId from, SegmentId to);
  void empty_segment(SegmentId segment);
  void clear();

  MemoryUsage usage() const;

 private:
  ContextLayer* at_ = nullptr;

  /// Layers that share bits.
  std::vector<LayerCache*> sharing(SegmentId segment, uint32_t from, uint32_t n_to_come);
  /// Calls work() of each layer's cache, on n_threads threads. Returns the first error.
  Status on_all(uint32_t n_threads, const std::function<Status(LayerCache&)>& work);
};

}  // namespace mikv::context
