// LayerCache::growth: the bytes that a step needs, by the same functions that allocate them (Tier::growth is to
// Tier::reserve what this is to stage() and commit()).
#include <algorithm>

#include "layer/layer_impl.hpp"
#include "policy/mixed_calibration.hpp"
#include "policy/policy.hpp"

namespace mikv {
namespace {

// What a step does to a segment.
struct Step {
  uint32_t n_tokens, n_at_once;
  bool in_parts;                    // they may pass through the layer in several micro-batches
  uint64_t n_live;                  // of the segment, afterwards
  const Spec& spec;                 // of the segment
  const tier::Layouts& of_segment;  // layouts
  // If the segment is lowered to spec before: spec's uniform layout of lo. Else null.
  const codec::BlockLayout* lowered;
};

// Tokens that stay staged. Heads grow one after the other; what passes is there in all of them.
struct Staged {
  int64_t lasting = 0;
  uint64_t transient = 0, passing = 0;

  void add(const LayerCache::Impl::StagedGrowth& of_head) {
    lasting += int64_t(of_head.tier.lasting);
    transient = std::max(transient, of_head.tier.transient);
    passing += of_head.passing;
  }
};

// The coordinates of a head whose segment is frozen under this spec.
uint64_t planned_transform_bytes(const LayerShape& shape, const Spec& spec) {
  const uint64_t dim_k = shape.head_dim_k, dim_v = shape.head_dim_v;
  if (spec.mixed()) return codec::Transform::most_bytes(shape.head_dim_k, shape.head_dim_v);
  const uint64_t n_halves =
      (spec.center ? dim_k : 0) + (spec.balancer ? dim_k : 0) + (spec.outlier_channels ? dim_k + dim_v : 0);
  return n_halves * sizeof(uint16_t);
}

// The lo tier of a head whose layout is planned when its segment is frozen: it has spec.bits per element at most, or
// the fewest that tiles can have.
uint64_t planned_lo_bytes(const LayerShape& shape, const Spec& spec, const tier::HeadStore& head, uint64_t n_tokens) {
  const double block_elements = double(codec::kBlockTokens) * (shape.head_dim_k + shape.head_dim_v);
  const double least = policy::least_bits(shape.head_dim_k, shape.head_dim_v, head.lo.layout().id_bytes);
  const auto block_bytes = uint64_t(std::max(least, spec.bits + head.more_bits) / 8.0 * block_elements) + 1;
  return tier::Tier::most_bytes(block_bytes, codec::blocks_of(n_tokens)) + sizeof(codec::BlockLayout);
}

// Bytes of a head's lo tier of n tokens, encoded in the bits of `spec`.
uint64_t lowered_lo_bytes(const Spec& spec, const tier::HeadStore& head, const codec::BlockLayout& uniform,
                          uint64_t n_tokens) {
  uint64_t block_bytes = head.lo.layout().bytes;
  if (!spec.mixed()) {
    block_bytes = std::min<uint64_t>(block_bytes, uniform.bytes);
  } else if (spec.bits + head.more_bits < head.lo.layout().bits_per_element()) {
    block_bytes = policy::lower_bits(head.lo.layout(), spec.bits + head.more_bits).bytes;
  }
  return tier::Tier::most_bytes(block_bytes, codec::blocks_of(n_tokens));
}

// Tokens of a head that are compressed in this step, with what is staged. All heads are staged before the first is
// compressed; threads then compress several at once.
void add_compressed(LayerGrowth& growth, const LayerCache::Impl& layer, const tier::HeadStore& head, const Step& step) {
  const uint32_t n_put = std::min(step.n_tokens, step.n_at_once);
  const tier::Tier::Growth staged = head.staged.growth(n_put, false);
  // One block of the staged tier stays, or none (Tier::release).
  growth.lasting += int64_t(tier::Tier::block_bytes(step.of_segment.staged)) - int64_t(head.staged.allocated_bytes());
  const uint32_t n_new = head.staged.size() + step.n_tokens;
  const uint64_t n_before = step.n_live - step.n_tokens;
  // What lowering moves to lo before the step is counted by freed_by().
  const bool lowered = step.lowered && !head.staged.size();
  const uint64_t n_hi_before =
      lowered ? std::min<uint64_t>(head.hi.size(), head.hi_places(step.spec, n_before).total) : head.hi.size();
  const uint64_t n_all = n_hi_before + n_new, n_kept = head.hi_places(step.spec, step.n_live).total;
  const uint64_t n_kept_most = head.hi_places(step.spec, step.n_live, step.n_tokens).total;
  // One more than hi may hold: the new token enters before another one leaves. It may hold more on the way there.
  const uint64_t n_hi = std::min(n_kept_most + 1 + policy::policy_of(step.spec.importance).fewer_places, n_all);
  tier::Tier::Growth hi = head.hi.growth(uint32_t(n_hi - std::min<uint64_t>(n_hi, head.hi.size())), step.in_parts);
  if (lowered)
    hi.lasting = head.hi.bytes_of(uint32_t(std::max(n_hi, n_hi_before))) - head.hi.bytes_of(uint32_t(n_hi_before));
  tier::Tier::Growth lo;
  const uint64_t n_leave = n_all - std::min(n_all, n_kept);
  if (!step.of_segment.evict && step.spec.mixed() && !head.frozen) {
    // Without a pattern, n_kept is the most that one keeps.
    const bool picks = policy::policy_of(step.spec.importance).patterns.n && !head.pattern;
    lo = {planned_lo_bytes(layer.shape, step.spec, head, picks ? n_new : n_leave), 0};
  } else if (!step.of_segment.evict) {
    // hi may hold more than its share until the next commit, where that became smaller.
    const uint64_t n_more = std::max<uint64_t>(n_new, n_leave);
    lo = head.lo.growth(uint32_t(n_more), step.in_parts);
    if (lowered) {
      const uint64_t n_lo = head.lo.size() + head.hi.size() - n_hi_before;
      lo.lasting = lowered_lo_bytes(step.spec, head, *step.lowered, n_lo + n_more) -
                   lowered_lo_bytes(step.spec, head, *step.lowered, n_lo);
    }
  }
  if (step.spec.needs_calibration() && !head.frozen)
    growth.lasting += int64_t(planned_transform_bytes(layer.shape, step.spec));
  growth.lasting += int64_t(hi.lasting + lo.lasting);
  growth.compressed += hi.lasting + lo.lasting;
  growth.transient += staged.lasting + std::max({staged.transient, hi.transient, lo.transient});
}

}  // namespace

// Of n_tokens more, of which n_at_once are put before anything else happens to them.
LayerCache::Impl::StagedGrowth LayerCache::Impl::staged_growth(const tier::HeadStore& head,
                                                               const tier::Layouts& of_segment, uint32_t n_tokens,
                                                               uint32_t n_at_once, bool in_parts) const {
  const uint32_t n_all = head.staged.size() + n_tokens;
  if (n_all < bytes_from() || !head.goes_to_bytes(of_segment, n_all))
    return {head.staged.growth(n_tokens, in_parts), 0};
  // All is in f16 until encode_staged() has that many.
  const tier::Tier::Growth in_f16 = head.staged.growth(std::min(n_tokens, n_at_once + bytes_from()), in_parts);
  const uint64_t bytes = tier::Tier::most_bytes(of_segment.staged_bytes.bytes, codec::blocks_of(n_all)),
                 now = head.staged.allocated_bytes();
  const uint64_t copied = in_parts ? tier::Tier::most_copied(bytes) : 0;
  return {{bytes - std::min(bytes, now), std::max(in_f16.transient, copied)}, now + in_f16.lasting};
}

uint64_t LayerCache::Impl::statistics_growth(const tier::SegmentStore* store, const tier::Layouts& of_segment,
                                             const Spec& of, uint32_t n_tokens) const {
  if (!of.balancer || (store && (store->heads().front().frozen || !store->heads().front().queries.empty()))) return 0;
  if ((store ? store->next_arrival() : 0) + uint64_t{n_tokens} < positions.record_from) return 0;
  return shape.n_kv_heads * tier::QueryStatistics::bytes_of(of_segment.group, shape.head_dim_k);
}

uint64_t LayerCache::Impl::bitmap_growth(const tier::SegmentStore* store, uint32_t n_tokens) const {
  uint64_t end = 0;
  for (const auto& segment : segments) end = std::max<uint64_t>(end, segment ? segment->live().end() : 0);
  // llama.cpp looks for free cells from the beginning only where it would leave out more than two for each token.
  end += 3 * uint64_t{n_tokens};
  const uint64_t now = store ? store->live().bytes() : 0;
  const uint64_t bytes = tier::CellSet::most_bytes(uint32_t(std::min<uint64_t>(end, positions.max_cells)));
  return bytes - std::min(bytes, now);
}

LayerGrowth LayerCache::growth(SegmentId segment, uint32_t n_tokens, uint32_t n_at_once, bool compressed,
                               const policy::Rung* rung, uint32_t n_beside) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  compressed = compressed && !impl_->spec.uncompressed();
  const Spec spec = rung ? policy::lowered(spec_of(segment), *rung) : spec_of(segment);
  const tier::Layouts& layouts = store ? store->layouts() : *impl_->layouts;
  const bool in_parts = n_tokens > n_at_once || (n_tokens > 1 && n_beside > 0);
  const bool lowered = rung && store && spec != store->spec();
  const codec::BlockLayout uniform =
      lowered ? make_layouts(impl_->shape, spec, impl_->positions).lo : codec::BlockLayout();
  const Step step{n_tokens,
                  n_at_once,
                  in_parts,
                  (store ? store->n_live() : 0) + n_tokens,
                  spec,
                  layouts,
                  lowered ? &uniform : nullptr};
  // A head that there is not yet; it is no larger than one that is.
  const tier::HeadStore fresh(layouts, spec, *impl_->account);
  LayerGrowth growth;
  Staged staged;
  growth.lasting += int64_t(impl_->bitmap_growth(store, n_tokens ? n_tokens + n_beside : 0));
  if (!store) {
    growth.lasting += int64_t(sizeof(tier::SegmentStore) + impl_->shape.n_kv_heads * sizeof(tier::HeadStore));
    for (const auto& balancer : layouts.balancers) growth.lasting += int64_t(balancer.size() * sizeof balancer.front());
  }
  const uint64_t statistics = impl_->statistics_growth(store, layouts, spec, n_tokens);
  if (!compressed) growth.lasting += int64_t(statistics);
  growth.transient += compressed ? statistics : 0;  // until the segment is frozen
  for (uint32_t h = 0; h < impl_->shape.n_kv_heads; ++h) {
    const tier::HeadStore& head = store ? store->heads()[h] : fresh;
    compressed ? add_compressed(growth, *impl_, head, step)
               : staged.add(impl_->staged_growth(head, layouts, n_tokens, n_at_once, in_parts));
  }
  growth.lasting += staged.lasting;
  growth.transient += staged.transient + staged.passing;
  return growth;
}

int64_t LayerCache::Impl::freed_by(const tier::SegmentStore& segment, const policy::Rung& rung, bool commits) const {
  const Spec smaller = policy::lowered(segment.spec(), rung);
  if (spec.uncompressed() || (smaller == segment.spec() && !commits)) return 0;
  const codec::BlockLayout uniform = make_layouts(shape, smaller, positions).lo;
  int64_t freed = 0;
  for (const tier::HeadStore& head : segment.heads()) {
    const bool freezes = head.freezes_next() || !smaller.needs_calibration();
    const uint32_t n_staged = commits && (freezes || head.compressed()) ? head.staged.size() : 0;
    if (head.staged.size() && !n_staged) continue;  // as demote_surplus() does
    if (!n_staged && smaller == segment.spec()) continue;
    const uint64_t n_stored = uint64_t{head.hi.size()} + head.lo.size() + n_staged;
    const uint64_t n_hi =
        std::min<uint64_t>(head.hi_places(smaller, segment.n_live()).total, head.hi.size() + n_staged);
    freed += int64_t(head.hi.allocated_bytes() + head.lo.allocated_bytes()) - int64_t(head.hi.bytes_of(uint32_t(n_hi)));
    if (n_staged)
      freed += int64_t(head.staged.allocated_bytes()) - int64_t(tier::Tier::block_bytes(segment.layouts().staged));
    if (n_staged && freezes) freed += int64_t(head.queries.bytes());
    if (n_staged && smaller.needs_calibration() && !head.frozen)
      freed -= int64_t(planned_transform_bytes(shape, smaller));
    if (segment.layouts().evict) continue;
    freed -= int64_t(smaller.mixed() && !head.frozen ? planned_lo_bytes(shape, smaller, head, n_stored - n_hi)
                                                     : lowered_lo_bytes(smaller, head, uniform, n_stored - n_hi));
  }
  return freed;
}

int64_t LayerCache::freed_by(SegmentId segment, const policy::Rung& rung, bool commits) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  return store ? impl_->freed_by(*store, rung, commits) : 0;
}

}  // namespace mikv
