// Call: one attention call of a layer, cut into items, and the head's tiers as kernels want them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "layer/rows.hpp"

namespace mikv::attention {

struct Call {
  const LayerAttendArgs& args;
  LayerCache::Impl& layer;
  Workspace::Impl& workspace;
  uint32_t first_head;  ///< of this call, in the workspace's numbering
  const std::vector<tier::SegmentStore*>& segments;
  uint64_t n_live = 0;  ///< cells
  uint32_t n_splits = 1, n_tiles = 1, tile_tokens = 1;
  policy::Recording recording = policy::recording_of(layer.spec);

  bool one_token() const { return args.n_tokens == 1; }
  uint32_t n_heads() const { return layer.shape.n_kv_heads; }
  uint32_t items_per_head() const { return one_token() ? n_splits : n_tiles; }
  double item_cost() const { return double((n_live / n_splits + kLanes) * tile_tokens); }
  /// Whether a KV head's scores record this call. The same for all of its items: they are done before it is committed.
  bool scoring(uint32_t kv_head) const {
    const auto compressed = [kv_head](const tier::SegmentStore* segment) {
      return segment->heads()[kv_head].compressed();
    };
    return args.record && recording.counts(args.n_tokens, std::ranges::any_of(segments, compressed));
  }
  size_t head_index(uint32_t kv_head) const { return first_head + kv_head; }
};

/// segments: memory for the call's. How a call is cut does not depend on the number of threads, so that neither do the
/// results: sums are rounded in the order in which they are cut.
Call plan(const LayerAttendArgs& args, LayerCache::Impl& layer, Workspace::Impl& workspace, uint32_t first_head,
          std::vector<tier::SegmentStore*>& segments);

/// Memory of a thread for the kernels.
Scratch scratch_for(ThreadSlot& slot, const LayerCache::Impl& layer, uint32_t n_rows);

/// Cells that a mask is read for: up to the last live one of all segments.
uint32_t n_cells_of(const Call& call);
/// What the tile's rows see; nothing where they see all. In memory of the thread.
QueryMask mask_for(const Call& call, const QueryTile& tile, ThreadSlot& slot);

/// The tier's first block in split i of n. Splits are equal parts of the head's blocks, tier after tier, in whole
/// strips of the kernels.
uint32_t cut(const TierOfHead& at, uint32_t i, uint32_t n);

/// The tiers of a head that hold something, into slot.tiers.
void find_tiers(const Call& call, uint32_t kv_head, ThreadSlot& slot);

BlockSpan span_of(const tier::Tier& tier, const Geometry& geometry);
/// The same of a tier whose outlier channels are halves; `outliers` is memory for their layout.
BlockSpan span_with_outliers(const tier::Tier& tier, const LayerCache::Impl& layer, codec::BlockLayout& outliers);

/// Calls work(tier, span, rows, view, next) for every non-empty tier of the head: view(state) is what the kernels see
/// of a state there, next the tier that follows or null.
template <typename Work>
void for_each_tier(const Call& call, const QueryTile& tile, ThreadSlot& slot, Work work) {
  const LayerCache::Impl& layer = call.layer;
  find_tiers(call, tile.kv_head, slot);
  Rows raw, rows, outliers;
  codec::BlockLayout outlier_layout;
  const codec::Transform* prepared = nullptr;
  for (size_t i = 0; i < slot.tiers.size(); ++i) {
    const TierOfHead at = slot.tiers[i];
    const TierOfHead* next = i + 1 < slot.tiers.size() ? &slot.tiers[i + 1] : nullptr;
    if (at.in_engine_coordinates()) {
      if (!raw.n) raw = prepare_raw(tile, slot.raw);
      work(
          at, span_of(*at.tier, layer.raw_geometry), raw, [&](RowState& state) { return raw_view(state, layer); },
          next);
      continue;
    }
    const codec::Transform& transform = at.head->transform_of(*at.tier);
    const codec::Axes &key = transform.key, &value = transform.value;
    if (prepared != &transform) {
      rows = prepare_for_tier(tile, key, slot.tier);
      if (layer.spec.outlier_channels) {
        outliers = prepare_outliers(tile, key, slot.outliers);
        rows.outliers = &outliers;
      }
    }
    prepared = &transform;
    const Rows of_tier = at.scored() ? rows : with_expected_error(tile, key, at.tier->layout(), rows, slot.tier);
    work(
        at, span_with_outliers(*at.tier, layer, outlier_layout), of_tier,
        [&](RowState& state) { return tier_view(state, layer, tile.n_rows(), value); }, next);
  }
}

}  // namespace mikv::attention
