#include "layer/attend_call.hpp"

namespace mikv::attention {
namespace {

// Rows of a chunk's tile: enough that decoding a tile is a few per cent of using it, few enough for the L2 cache.
constexpr uint32_t kTileRows = 96;
// Tokens of a split of a generation step: enough that one more softmax state is a few per cent of its work.
constexpr uint32_t kSplitTokens = 2048, kLeastSplitTokens = 512;
// With more KV heads, splits of kSplitTokens keep 16 threads busy.
constexpr uint32_t kFewHeads = 4;

}  // namespace

Call plan(const LayerAttendArgs& args, LayerCache::Impl& layer, Workspace::Impl& workspace, uint32_t first_head,
          std::vector<tier::SegmentStore*>& segments) {
  segments.clear();
  if (args.segments.empty()) {
    for (const auto& segment : layer.segments) {
      if (segment) segments.push_back(segment.get());
    }
  }
  for (const SegmentId id : args.segments) {
    if (tier::SegmentStore* segment = layer.segment(id)) segments.push_back(segment);
  }
  Call call{args, layer, workspace, first_head, segments};
  // Live cells, not stored tokens: a faster thread may be committing a head already, and all must cut alike.
  for (const tier::SegmentStore* segment : segments) call.n_live += segment->n_live();
  if (call.one_token()) {
    const uint32_t split_tokens = call.n_heads() <= kFewHeads ? kLeastSplitTokens : kSplitTokens;
    call.n_splits = uint32_t(std::clamp<uint64_t>(call.n_live / split_tokens, 1, Workspace::Impl::kMaxSplits));
    return call;
  }
  const uint32_t group = layer.shape.n_heads / call.n_heads();
  call.tile_tokens = std::max(1u, std::min(kTileRows / group, (args.n_tokens + 3) / 4));
  call.n_tiles = (args.n_tokens + call.tile_tokens - 1) / call.tile_tokens;
  return call;
}

BlockSpan span_of(const tier::Tier& tier, const Geometry& geometry) {
  return {tier.blocks(), &tier.layout(), &geometry, tier.size(), {}};
}

BlockSpan span_with_outliers(const tier::Tier& tier, const LayerCache::Impl& layer, codec::BlockLayout& outliers) {
  BlockSpan span = span_of(tier, layer.tier_geometry);
  if (!layer.spec.outlier_channels) return span;
  const bool halves = tier.layout().bits == 16;  // all of its tiles: only the first ones are read as outliers
  outliers = halves ? tier.layout() : tier.layout().outlier_part();
  if (halves) outliers.tiles_k = outliers.tiles_v = n_outlier_channels(layer.spec) / codec::kTileSide;
  span.outliers = &outliers;
  span.outlier_geometry = &layer.outlier_geometry;
  return span;
}

Scratch scratch_for(ThreadSlot& slot, const LayerCache::Impl& layer, uint32_t n_rows) {
  const uint32_t n_tiles = std::max(layer.layouts->staged.tiles_k, layer.layouts->staged.tiles_v);
  slot.logits.resize(size_t{n_rows} * kStripTokens);
  slot.decoded.resize(size_t{kStripBlocks} * n_tiles * kLanes * kLanes);
  slot.weights.resize(size_t{kMaxKernelRows} * kStripTokens);
  slot.factors.resize(padded_rows(n_rows));
  return {slot.logits.data(), slot.factors.data(), slot.decoded.data(), slot.weights.data()};
}

uint32_t n_cells_of(const Call& call) {
  uint32_t n_cells = 0;
  for (const tier::SegmentStore* segment : call.segments) n_cells = std::max(n_cells, segment->live().end());
  return n_cells;
}

QueryMask mask_for(const Call& call, const QueryTile& tile, ThreadSlot& slot) {
  const Mask& mask = call.args.mask;
  if (mask.type == Mask::Type::none) return {};
  bool all_seen = true;
  for (const tier::SegmentStore* segment : call.segments) {
    const auto live = segment->live().words();
    all_seen = all_seen && kernels().sees_all(mask, tile.first_token, tile.n_tokens, live.data(), live.size());
  }
  if (all_seen) return {};
  const uint32_t n_cells = n_cells_of(call);
  slot.mask_low.resize(n_cells);
  slot.mask_high.resize(tile.n_tokens > 1 ? n_cells : 0);
  float* high = tile.n_tokens > 1 ? slot.mask_high.data() : slot.mask_low.data();
  kernels().mask_range(mask, tile.first_token, tile.n_tokens, n_cells, slot.mask_low.data(), high);
  const float* slopes = call.args.mask_slopes ? call.args.mask_slopes + tile.kv_head * tile.group() : nullptr;
  return {&mask, slot.mask_low.data(), high, tile.first_token, tile.group(), slopes};
}

uint32_t cut(const TierOfHead& at, uint32_t i, uint32_t n) {
  const uint64_t in_head = at.n_head_blocks * i / n, n_blocks = at.tier->n_blocks();
  if (in_head <= at.first_block) return 0;
  const uint64_t in_tier = in_head - at.first_block;
  if (in_tier >= n_blocks) return uint32_t(n_blocks);
  return uint32_t(std::min((in_tier + kStripBlocks / 2) / kStripBlocks * kStripBlocks, n_blocks));
}

void find_tiers(const Call& call, uint32_t kv_head, ThreadSlot& slot) {
  slot.tiers.clear();
  uint64_t n_blocks = 0;
  for (tier::SegmentStore* segment : call.segments) {
    tier::HeadStore& head = segment->heads()[kv_head];
    for (tier::Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      if (!tier->size()) continue;
      slot.tiers.push_back({&head, tier, n_blocks});
      n_blocks += tier->n_blocks();
    }
  }
  for (TierOfHead& at : slot.tiers) at.n_head_blocks = n_blocks;
}

}  // namespace mikv::attention
