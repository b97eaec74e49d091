#include "cache/head_store.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "codec/fp16.hpp"
#include "policy/importance.hpp"

namespace mikv::cache {

HeadStore::HeadStore(const Layouts& layouts, bool hadamard, uint32_t dim_k, bool track_queries)
    : staged(layouts.staged), hi(layouts.hi), lo(layouts.lo), evict(layouts.evict) {
  transform.hadamard = hadamard;
  if (track_queries) q_max.assign(dim_k, 0.0f);
}

HeadStore::HeadStore(const HeadStore& other, const Layouts& layouts, bool hadamard, bool track_queries)
    : staged(other.staged, layouts.staged), hi(layouts.hi), lo(layouts.lo), q_max(other.q_max), evict(layouts.evict) {
  transform.hadamard = hadamard;
  if (!track_queries) q_max = {};
  if (track_queries && q_max.empty()) q_max.assign(layouts.staged.dim_k, 0.0f);
}

void HeadStore::note_query(const float* q) {
  for (size_t c = 0; c < q_max.size(); ++c) {
    const float magnitude = std::abs(q[c]);
    std::atomic_ref<float> seen(q_max[c]);
    float before = seen.load(std::memory_order_relaxed);
    while (magnitude > before && !seen.compare_exchange_weak(before, magnitude, std::memory_order_relaxed)) {
    }
  }
}

void HeadStore::load_staged(uint32_t slot, CommitScratch& scratch) const {
  codec::decode_token(staged.block_of(slot), staged.layout(), Tier::lane_of(slot), scratch.k.data(), scratch.v.data());
}

void HeadStore::freeze(const Spec& spec, CommitScratch& scratch) {
  const uint32_t dim = staged.layout().dim_k;
  std::vector<double> sums(dim, 0.0);
  std::vector<float> low(dim, INFINITY), high(dim, -INFINITY);
  for (uint32_t slot = 0; slot < staged.size(); ++slot) {
    load_staged(slot, scratch);
    for (uint32_t c = 0; c < dim; ++c) {
      sums[c] += scratch.k[c];
      low[c] = std::min(low[c], scratch.k[c]);
      high[c] = std::max(high[c], scratch.k[c]);
    }
  }
  codec::Transform next;
  next.hadamard = transform.hadamard;
  if (spec.center) {
    for (uint32_t c = 0; c < dim; ++c) next.centre.push_back(codec::f32_to_f16(float(sums[c] / staged.size())));
  }
  if (spec.balancer) {
    for (uint32_t c = 0; c < dim; ++c) {
      const float mu = spec.center ? codec::f16_to_f32(next.centre[c]) : 0.0f;
      next.balancer.push_back(codec::balance(q_max[c], std::max(high[c] - mu, mu - low[c])));
    }
  }
  transform = std::move(next);
  q_max = {};
  frozen = true;
}

void HeadStore::append_lo(uint32_t cell, const CommitScratch& scratch) {
  const uint32_t slot = lo.append(1);
  lo.cell(slot) = cell;
  codec::encode_token(lo.block_of(slot), lo.layout(), Tier::lane_of(slot), scratch.k.data(), scratch.v.data());
}

void HeadStore::demote_hi(uint32_t slot, CommitScratch& scratch) {
  if (!evict) {
    codec::decode_token(hi.block_of(slot), hi.layout(), Tier::lane_of(slot), scratch.k.data(), scratch.v.data());
    append_lo(hi.cell(slot), scratch);
  }
  hi.remove(slot);
}

void HeadStore::keep_staged(uint32_t slot, CommitScratch& scratch) {
  load_staged(slot, scratch);
  transform.key_to_tier({scratch.k.data(), staged.layout().dim_k});
  transform.value_to_tier({scratch.v.data(), staged.layout().dim_v});
  const uint32_t to = hi.append(1);
  hi.cell(to) = staged.cell(slot);
  hi.set_score(to, staged.score(slot), staged.arrival(slot));
  codec::encode_token(hi.block_of(to), hi.layout(), Tier::lane_of(to), scratch.k.data(), scratch.v.data());
}

void HeadStore::drop_staged(uint32_t slot, CommitScratch& scratch) {
  if (evict) return;
  load_staged(slot, scratch);
  transform.key_to_tier({scratch.k.data(), staged.layout().dim_k});
  transform.value_to_tier({scratch.v.data(), staged.layout().dim_v});
  append_lo(staged.cell(slot), scratch);
}

// Victims among the candidates: hi slots, then staged slots. All of them compete for the budget.
void HeadStore::choose_victims(const Spec& spec, uint64_t n_live, CommitScratch& scratch) const {
  scratch.victims.clear();
  if (spec.importance == Importance::full) return;
  const uint32_t n_hi = hi.size(), n_candidates = n_hi + staged.size();
  scratch.scores.resize(n_candidates);
  scratch.arrivals.resize(n_candidates);
  hi.copy_ranking(scratch.scores.data(), scratch.arrivals.data());
  staged.copy_ranking(scratch.scores.data() + n_hi, scratch.arrivals.data() + n_hi);
  policy::choose_demotions({spec.importance, spec.sinks, spec.seed}, scratch.scores, scratch.arrivals,
                           policy::hi_budget(spec.keep, n_live), scratch.victims, scratch.policy);
}

void HeadStore::commit(const Spec& spec, uint64_t n_live, CommitScratch& scratch) {
  const uint32_t n_hi = hi.size(), n_staged = staged.size();
  if (n_staged == 0 || spec.uncompressed()) return;
  if (spec.needs_frame() && !frozen && n_staged < kMinFrameTokens) return;
  scratch.k.resize(codec::kMaxHeadDim);
  scratch.v.resize(codec::kMaxHeadDim);

  choose_victims(spec, n_live, scratch);
  const uint32_t n_victims = uint32_t(scratch.victims.size());
  if (!evict) lo.reserve(n_victims);
  // Victims leave hi before survivors enter it, so hi only grows by what it ends up with.
  if (n_staged > n_victims) hi.reserve(n_staged - n_victims);
  if (spec.needs_frame() && !frozen) freeze(spec, scratch);

  // From the highest slot down: removing one moves the last one into its place, and that one stays.
  std::sort(scratch.victims.begin(), scratch.victims.end(), std::greater<>());
  auto victim = scratch.victims.begin();
  scratch.staged_victim.assign(n_staged, 0);
  for (; victim != scratch.victims.end() && *victim >= n_hi; ++victim) scratch.staged_victim[*victim - n_hi] = 1;
  for (; victim != scratch.victims.end(); ++victim) demote_hi(*victim, scratch);
  for (uint32_t slot = 0; slot < n_staged; ++slot) {
    scratch.staged_victim[slot] ? drop_staged(slot, scratch) : keep_staged(slot, scratch);
  }
  staged.release();
}

}  // namespace mikv::cache
