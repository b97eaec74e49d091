// The parts of a LayerCache, for the cache (layer_cache.cpp) and for attention (attend.cpp).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attention/kernel_api.hpp"
#include "layer/layer_cache.hpp"
#include "layer/layer_layouts.hpp"
#include "policy/ladder.hpp"
#include "policy/policy.hpp"
#include "tier/segment_store.hpp"

namespace mikv {

struct LayerCache::Impl {
  std::shared_ptr<MemoryAccount> account;
  LayerShape shape;
  Spec spec;  ///< of new segments
  tier::Positions positions;
  std::shared_ptr<const tier::Layouts> layouts;  ///< of that spec
  attention::Geometry raw_geometry;              ///< of staged tokens: no groups
  attention::Geometry tier_geometry;             ///< of hi and lo
  attention::Geometry outlier_geometry;          ///< of their outlier channels, if spec has them
  bool stages_in_bytes = false;                  ///< a budget presses: LayerCache::stage_in_bytes()
  /// Channels per scale group in hi and lo; the whole head if neither has scales.
  uint32_t tier_group_k = 0, tier_group_v = 0;
  std::vector<std::unique_ptr<tier::SegmentStore>> segments;  ///< by SegmentId; null: never used

  /// How many tokens are staged in f16 before a segment with nothing compressed holds them in bytes; UINT32_MAX: it
  /// does not. Short prompts stay exact.
  uint32_t bytes_from() const {
    if (stages_in_bytes) return tier::kMinCalibrationTokens;
    return spec.staged == Format::int8 ? tier::kFirstTokens : UINT32_MAX;
  }
  /// True if tiers hold values in other coordinates than staged tokens, which may differ by segment.
  bool values_transformed() const { return spec.hadamard || spec.outlier_channels; }
  tier::SegmentStore* segment(SegmentId id) const { return id < segments.size() ? segments[id].get() : nullptr; }
  tier::SegmentStore& segment_for_put(SegmentId id);
  Status lower(tier::SegmentStore& segment, const policy::Rung& rung) const;
  int64_t freed_by(const tier::SegmentStore& segment, const policy::Rung& rung, bool commits) const;
  /// passing: in f16, before encode_staged().
  struct StagedGrowth {
    tier::Tier::Growth tier;
    uint64_t passing = 0;
  };
  StagedGrowth staged_growth(const tier::HeadStore& head, const tier::Layouts& of_segment, uint32_t n_tokens,
                             uint32_t n_at_once, bool in_parts) const;
  /// Most bytes that n_tokens more add to a segment's bitmap of live cells, next to the cells in use.
  uint64_t bitmap_growth(const tier::SegmentStore* store, uint32_t n_tokens) const;
  /// Bytes of the statistics of queries that n_tokens more in the segment begin.
  uint64_t statistics_growth(const tier::SegmentStore* store, const tier::Layouts& of_segment, const Spec& of,
                             uint32_t n_tokens) const;
  /// Drops a segment without cells, with its centre and balancer: the next prompt freezes its own.
  void drop_if_empty(SegmentId id);
};

inline Error segment_out_of_range(SegmentId segment) {
  return Error{"segment " + std::to_string(segment) + " is out of range; use 0 to " + std::to_string(kMaxSegments - 1)};
}

}  // namespace mikv
