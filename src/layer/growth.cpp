// LayerCache::growth: the bytes that a step needs, by the same functions that allocate them (Tier::growth is to
// Tier::reserve what this is to stage() and commit()).
#include <algorithm>

#include "layer/layer_impl.hpp"

namespace mikv {
namespace {

using Growth = LayerCache::Growth;

// What a step does to a segment.
struct Step {
  uint32_t n_tokens, n_at_once;
  uint64_t n_live;  // of the segment, afterwards
};

void add_tier(Growth& growth, const tier::Tier::Growth& of_tier) {
  growth.lasting += int64_t(of_tier.lasting);
  growth.transient = std::max(growth.transient, of_tier.transient);
}

void add_compressed_tier(Growth& growth, const tier::Tier::Growth& of_tier) {
  add_tier(growth, of_tier);
  growth.compressed += of_tier.lasting;
}

// The lo tier of a head whose layout is planned when its segment is frozen: it has spec.bits per element at most.
uint64_t planned_lo_bytes(const LayerCache::Impl& layer, const tier::HeadStore& head, uint32_t n_tokens) {
  const LayerShape& shape = layer.shape;
  const uint32_t n_blocks = (n_tokens + codec::kBlockTokens - 1) / codec::kBlockTokens;
  const double block_elements = double(codec::kBlockTokens) * (shape.head_dim_k + shape.head_dim_v);
  const auto block_bytes = uint64_t((layer.spec.bits + head.more_bits) / 8.0 * block_elements) + 1;
  return tier::Tier::most_bytes(block_bytes, n_blocks) +
         codec::Transform::most_bytes(shape.head_dim_k, shape.head_dim_v) + sizeof(codec::BlockLayout);
}

// Tokens of a head that are compressed in this step, with what is staged.
void add_compressed(Growth& growth, const LayerCache::Impl& layer, const tier::HeadStore& head, const Step& step) {
  const tier::Tier::Growth staged = layer.staged_growth(head, std::min(step.n_tokens, step.n_at_once), step.n_at_once);
  growth.transient = std::max(growth.transient, staged.transient) + staged.lasting;
  // One block of the staged tier stays (Tier::release).
  growth.lasting += int64_t(layer.layouts.staged.bytes) - int64_t(head.staged.allocated_bytes());
  const uint32_t n_new = head.staged.size() + step.n_tokens;
  // One more than hi may hold: the new token enters before another one leaves.
  const uint64_t n_hi =
      std::min<uint64_t>(head.budget(layer.spec, step.n_live).total + 1, uint64_t{head.hi.size()} + n_new);
  add_compressed_tier(growth, head.hi.growth(uint32_t(n_hi - std::min<uint64_t>(n_hi, head.hi.size()))));
  if (layer.layouts.evict) return;
  if (layer.spec.mixed() && !head.frozen) {
    add_compressed_tier(growth, {planned_lo_bytes(layer, head, n_new), 0});
  } else {
    add_compressed_tier(growth, head.lo.growth(n_new));
  }
}

}  // namespace

// Of n_tokens more, of which n_at_once are put before anything else happens to them.
tier::Tier::Growth LayerCache::Impl::staged_growth(const tier::HeadStore& head, uint32_t n_tokens,
                                                   uint32_t n_at_once) const {
  // Bytes begin with the put that follows that of the 16th token.
  const uint32_t n_first = head.staged.size() >= tier::kMinCalibrationTokens
                               ? 0
                               : std::min(n_tokens, n_at_once + tier::kMinCalibrationTokens);
  const uint32_t n_all = head.staged.size() + n_tokens;
  if (!stages_in_bytes || !head.goes_to_bytes(layouts, n_all) || n_first == n_tokens)
    return head.staged.growth(n_tokens);
  tier::Tier::Growth growth = head.staged.growth(n_first);
  const uint32_t n_blocks = (n_all + codec::kBlockTokens - 1) / codec::kBlockTokens;
  const uint64_t bytes = tier::Tier::most_bytes(layouts.staged_bytes.bytes, n_blocks),
                 now = head.staged.allocated_bytes();
  growth.lasting = std::max(growth.lasting, bytes - std::min(bytes, now));
  return growth;
}

uint64_t LayerCache::Impl::bitmap_growth(const tier::SegmentStore* store, uint32_t n_tokens) const {
  uint32_t end = 0;
  for (const auto& segment : segments) end = std::max(end, segment ? segment->live().end() : 0);
  const uint64_t now = store ? store->live().bytes() : 0;
  const uint64_t bytes =
      tier::CellSet::most_bytes(uint32_t(std::min<uint64_t>(uint64_t{end} + n_tokens, positions.max_cells)));
  return bytes - std::min(bytes, now);
}

LayerCache::Growth LayerCache::growth(SegmentId segment, uint32_t n_tokens, uint32_t n_at_once, bool compressed) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  compressed = compressed && !impl_->spec.uncompressed();
  const Step step{n_tokens, n_at_once, (store ? store->n_live() : 0) + n_tokens};
  // A head that there is not yet; it is no larger than one that is.
  const tier::HeadStore fresh(impl_->layouts, impl_->spec);
  Growth growth;
  growth.lasting += int64_t(impl_->bitmap_growth(store, n_tokens));
  if (!store) {
    growth.lasting += int64_t(sizeof(tier::SegmentStore) + impl_->shape.n_kv_heads * sizeof(tier::HeadStore));
    const uint64_t statistics = impl_->shape.n_kv_heads * fresh.calibration_bytes();  // until the segment is frozen
    compressed ? growth.transient += statistics : growth.lasting += int64_t(statistics);
  }
  for (uint32_t h = 0; h < impl_->shape.n_kv_heads; ++h) {
    const tier::HeadStore& head = store ? store->heads()[h] : fresh;
    compressed ? add_compressed(growth, *impl_, head, step)
               : add_tier(growth, impl_->staged_growth(head, n_tokens, n_at_once));
  }
  return growth;
}

uint64_t LayerCache::freed_by(double keep) const {
  Spec smaller = impl_->spec;
  smaller.keep = keep;
  int64_t freed = 0;
  for (const auto& segment : impl_->segments) {
    if (!segment) continue;
    for (const tier::HeadStore& head : segment->heads()) {
      const uint64_t n_hi = head.budget(smaller, segment->n_live()).total;
      if (head.staged.size() || head.hi.size() <= n_hi) continue;  // as hold_budget() does
      freed += int64_t(head.hi.allocated_bytes()) - int64_t(head.hi.bytes_of(uint32_t(n_hi)));
      if (!impl_->layouts.evict) freed -= int64_t(head.lo.growth(uint32_t(head.hi.size() - n_hi)).lasting);
    }
  }
  return uint64_t(std::max<int64_t>(0, freed));
}

}  // namespace mikv
