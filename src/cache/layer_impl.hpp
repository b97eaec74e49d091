// What a LayerCache is made of; shared by the cache (layer_cache.cpp) and by attention (attention/attend.cpp).
#pragma once

#include <memory>
#include <vector>

#include "attention/kernel_api.hpp"
#include "cache/frame_store.hpp"
#include "mikv/cache.hpp"

namespace mikv {

struct LayerCache::Impl {
  LayerShape shape;
  Spec spec;
  cache::Positions positions;
  cache::Layouts layouts;
  attention::Geometry raw_geometry;   ///< of staged tokens: no groups
  attention::Geometry tier_geometry;  ///< of hi and lo
  bool stages_in_bytes = false;
  uint32_t tier_group_k = 0,
           tier_group_v = 0;  ///< channels a scale group in hi and lo; the whole head if neither has scales
  std::vector<std::unique_ptr<cache::FrameStore>> frames;  ///< by FrameId; null: never used

  bool scores_wanted() const { return spec.importance == Importance::h2o && spec.keep > 0.0 && spec.keep < 1.0; }
  /// Tiers hold values in other coordinates than staged tokens, and perhaps in others in each frame.
  bool values_transformed() const { return spec.hadamard; }
  cache::FrameStore* frame(FrameId id) const { return id < frames.size() ? frames[id].get() : nullptr; }
  cache::FrameStore& frame_for_put(FrameId id);
  Status commit(cache::FrameStore& frame, uint32_t from);
  cache::Tier::Growth staged_growth(const cache::HeadStore& head, uint32_t n_tokens, uint32_t n_at_once) const;
  /// Drops a frame whose last cell went, with its centre and balancer: the next prompt freezes its own.
  void drop_if_empty(FrameId id);
};

}  // namespace mikv
