// What a LayerCache is made of; shared by the cache (layer_cache.cpp) and by attention (layer/attend.cpp).
#pragma once

#include <memory>
#include <vector>

#include "attention/kernel_api.hpp"
#include "layer/layer_cache.hpp"
#include "policy/policy.hpp"
#include "tier/segment_store.hpp"

namespace mikv {

struct LayerCache::Impl {
  std::shared_ptr<MemoryAccount> account;
  LayerShape shape;
  Spec spec;
  tier::Positions positions;
  tier::Layouts layouts;
  attention::Geometry raw_geometry;   ///< of staged tokens: no groups
  attention::Geometry tier_geometry;  ///< of hi and lo
  bool stages_in_bytes = false;
  uint32_t tier_group_k = 0,
           tier_group_v = 0;  ///< channels a scale group in hi and lo; the whole head if neither has scales
  std::vector<std::unique_ptr<tier::SegmentStore>> segments;  ///< by SegmentId; null: never used

  /// Tiers hold values in other coordinates than staged tokens, and perhaps in others in each segment.
  bool values_transformed() const { return spec.hadamard; }
  tier::SegmentStore* segment(SegmentId id) const { return id < segments.size() ? segments[id].get() : nullptr; }
  tier::SegmentStore& segment_for_put(SegmentId id);
  Status commit(tier::SegmentStore& segment, uint32_t from);
  tier::Tier::Growth staged_growth(const tier::HeadStore& head, uint32_t n_tokens, uint32_t n_at_once) const;
  /// Bytes that a segment's bitmap of live cells grows by with n_tokens more, wherever the engine puts them next to the
  /// cells in use.
  uint64_t bitmap_growth(const tier::SegmentStore* store, uint32_t n_tokens) const;
  /// Drops a segment whose last cell went, with its centre and balancer: the next prompt freezes its own.
  void drop_if_empty(SegmentId id);
};

}  // namespace mikv
