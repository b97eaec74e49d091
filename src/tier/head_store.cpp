#include "tier/head_store.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "codec/fp16.hpp"
#include "policy/policy.hpp"
#include "tier/calibration.hpp"
#include "tier/staged_rows.hpp"

namespace mikv::tier {
namespace {

// Of a tier's tokens that arrived at `from` or later.
uint64_t count_punctuation(const Tier& tier, uint32_t from) {
  uint64_t n = 0;
  for (uint32_t slot = 0; slot < tier.size(); ++slot) n += tier.arrival(slot) >= from && std::signbit(tier.score(slot));
  return n;
}

}  // namespace

HeadStore::HeadStore(const Layouts& layouts, const Spec& spec, MemoryAccount& account)
    : staged(layouts.staged, account),
      hi(layouts.hi, account),
      lo(layouts.lo, account),
      evict(layouts.evict),
      staged_f16_(&layouts.staged),
      account_(&account),
      charge_(&account),
      positions_(layouts.positions) {
  if (!spec.mixed()) transform.key.hadamard = transform.value.hadamard = spec.hadamard;
  if (positions_->record_from == 0) record(layouts, spec);
}

void HeadStore::record(const Layouts& layouts, const Spec& spec) {
  if (!frozen && spec.balancer && queries.empty()) queries = QueryStatistics(layouts.group, layouts.staged.dim_k);
}

HeadStore::HeadStore(const HeadStore& other, const Layouts& layouts, const Spec& spec, MemoryAccount& account)
    : HeadStore(layouts, spec, account) {
  staged = Tier(other.staged, layouts.staged, account);
  rope_shifted = other.rope_shifted;
  if (spec.balancer) queries = other.queries;
}

uint64_t HeadStore::calibration_bytes() const {
  return transform.bytes() + staged_transform.bytes() + queries.bytes() + (own_lo_ ? sizeof *own_lo_ : 0);
}

uint64_t HeadStore::charged_bytes() const {
  return charge_.bytes() + staged.allocated_bytes() + hi.allocated_bytes() + lo.allocated_bytes();
}

void HeadStore::change_account(MemoryAccount& account) {
  for (Tier* tier : {&staged, &hi, &lo}) tier->change_account(account);
  charge_.change_account(account);
  account_ = &account;
}

void HeadStore::set_lo_layout(const codec::BlockLayout& layout) {
  own_lo_ = std::make_unique<codec::BlockLayout>(layout);
  lo = Tier(*own_lo_, *account_);
}

bool HeadStore::goes_to_bytes(const Layouts& layouts, uint32_t n_tokens) const {
  const codec::BlockLayout& bytes = layouts.staged_bytes;  // with small groups its scales outweigh what codes save
  return layouts.quantised() && !bytes.outlier_tiles && bytes.bytes < layouts.staged.bytes && !staged_in_bytes() &&
         !compressed() && n_tokens >= kMinCalibrationTokens;
}

void HeadStore::stage_in_bytes(const Layouts& layouts, bool hadamard) {
  if (!goes_to_bytes(layouts, staged.size())) return;
  const uint32_t dim = layouts.staged.dim_k;
  std::vector<float> k(codec::kMaxHeadDim), v(codec::kMaxHeadDim);
  std::vector<double> mean(dim);
  for (uint32_t slot = 0; slot < staged.size(); ++slot) {
    codec::decode_token(staged.block_of(slot), staged.layout(), Tier::lane_of(slot), k.data(), v.data());
    for (uint32_t c = 0; c < dim; ++c) mean[c] += k[c] / double(staged.size());
  }
  codec::Axes key;
  for (const double x : mean) key.centre.push_back(codec::f32_to_f16(float(x)));
  key.hadamard = hadamard;
  charge_.set(calibration_bytes() + key.bytes());
  staged.reencode(layouts.staged_bytes, [&](float* token) { key.to_tier({token, dim}); });
  staged.shrink();
  staged_transform.key = std::move(key);
}

void HeadStore::release_staged(uint32_t first) {
  if (first > 0) {
    while (staged.size() > first) staged.remove(staged.size() - 1);
    return staged.shrink();
  }
  if (!staged_in_bytes()) return staged.release();
  staged = Tier(*staged_f16_, *account_);
  staged_transform = {};
}

// k, v: in the coordinates of lo. Keys by channel are encoded when they fill a block.
void HeadStore::append_lo(uint32_t cell, const float* k, const float* v, CommitScratch& scratch) {
  if (lo.layout().keys_by_channel) return wait_for_block(cell, k, v, scratch);
  const uint32_t slot = lo.append(1);
  lo.set_cell(slot, cell);
  codec::encode_token(lo.block_of(slot), lo.layout(), Tier::lane_of(slot), k, v);
}

void HeadStore::demote_hi(uint32_t slot, CommitScratch& scratch) {
  if (!evict) {
    codec::decode_token(hi.block_of(slot), hi.layout(), Tier::lane_of(slot), scratch.k.data(), scratch.v.data());
    append_lo(hi.cell(slot), scratch.k.data(), scratch.v.data(), scratch);
  }
  hi.remove(slot);
}

void HeadStore::keep_staged(uint32_t slot, float* k, float* v) {
  transform.key.to_tier({k, staged.layout().dim_k});
  transform.value.to_tier({v, staged.layout().dim_v});
  const uint32_t to = hi.append(1);
  hi.set_cell(to, staged.cell(slot));
  hi.set_score(to, staged.score(slot), staged.arrival(slot));
  codec::encode_token(hi.block_of(to), hi.layout(), Tier::lane_of(to), k, v);
}

void HeadStore::drop_staged(uint32_t slot, float* k, float* v, CommitScratch& scratch) {
  if (evict) return;
  transform.key.to_tier({k, staged.layout().dim_k});
  transform.value.to_tier({v, staged.layout().dim_v});
  append_lo(staged.cell(slot), k, v, scratch);
}

// Appends a token that is encoded when lo's block is full; encode_waiting() encodes the last ones. k, v: as
// encode_waiting() wants them.
void HeadStore::wait_for_block(uint32_t cell, const float* k, const float* v, CommitScratch& scratch) {
  const uint32_t dim_k = lo.layout().dim_k, dim_v = lo.layout().dim_v, to = lo.append(1);
  lo.set_cell(to, cell);
  std::copy_n(k, dim_k, scratch.lo_k.begin() + scratch.n_lo * dim_k);
  std::copy_n(v, dim_v, scratch.lo_v.begin() + scratch.n_lo * dim_v);
  ++scratch.n_lo;
  if (Tier::lane_of(lo.size()) == 0) encode_waiting(scratch);
}

void HeadStore::encode_waiting(CommitScratch& scratch) {
  if (scratch.n_lo == 0) return;
  const uint32_t first = lo.size() - scratch.n_lo, lane = Tier::lane_of(first);
  const float *k = scratch.lo_k.data(), *v = scratch.lo_v.data();
  if (lo.layout().keys_by_channel) {  // in the tier's coordinates
    codec::add_tokens(lo.block_of(first), lo.layout(), lane, scratch.n_lo, k, v);
  } else {  // in the engine's
    codec::encode_tokens(lo.block_of(first), lo.layout(), transform, lane, scratch.n_lo, k, v);
  }
  scratch.n_lo = 0;
}

void HeadStore::move_staged(uint32_t first, CommitScratch& scratch) {
  const bool together =
      lo.layout().mixed() && !evict && staged.size() >= codec::kEncodeTogether && codec::encodes_together();
  const auto move = [&](uint32_t slot, float* k, float* v) {
    if (!scratch.staged_victim[slot]) return keep_staged(slot, k, v);
    together ? wait_for_block(staged.cell(slot), k, v, scratch) : drop_staged(slot, k, v, scratch);
  };
  for_each_staged(*this, scratch, move, first);
  encode_waiting(scratch);
}

// Scores, settled, and arrivals of hi slots, then of staged slots.
void HeadStore::rank(const policy::Policy& policy, CommitScratch& scratch) const {
  const uint32_t n_hi = hi.size(), n_candidates = n_hi + staged.size();
  scratch.scores.resize(n_candidates);
  scratch.arrivals.resize(n_candidates);
  hi.copy_ranking(scratch.scores.data(), scratch.arrivals.data());
  staged.copy_ranking(scratch.scores.data() + n_hi, scratch.arrivals.data() + n_hi);
  if (!policy.keeps_punctuation) {  // a state that was saved under another policy may have signs
    for (float& score : scratch.scores) score = std::abs(score);
  }
  if (policy.settle && staged.size()) {
    policy.settle(scratch.scores, scratch.arrivals, n_hi, compressed(), scratch.policy);
  }
}

uint8_t HeadStore::plan_pattern(const Spec& spec, uint64_t n_live, CommitScratch& scratch) const {
  const policy::Policy& policy = policy::policy_of(spec.importance);
  if (pattern || !policy.patterns.n) return pattern;
  rank(policy, scratch);
  return policy.patterns.pick(spec, scratch.scores, scratch.arrivals, n_live, scratch.policy);
}

// Victims among the candidates: hi slots, then staged slots. All of them compete for the places in hi.
void HeadStore::choose_victims(const Spec& spec, policy::Places places, CommitScratch& scratch) const {
  scratch.victims.clear();
  const policy::Policy& policy = policy::policy_of(spec.importance);
  if (!policy.demotes()) return;
  rank(policy, scratch);
  policy::choose_demotions({spec.importance, places.share_of_recent(), spec.sinks, spec.seed}, scratch.scores,
                           scratch.arrivals, places.total, scratch.victims, scratch.policy);
}

void HeadStore::store_scores(const CommitScratch& scratch) {
  size_t i = 0;
  for (Tier* tier : {&hi, &staged}) {
    for (uint32_t slot = 0; slot < tier->size(); ++slot, ++i)
      tier->set_score(slot, scratch.scores[i], scratch.arrivals[i]);
  }
}

policy::Places HeadStore::hi_places(const Spec& spec, uint64_t n_live, uint32_t n_to_come) const {
  return hi_places(spec, n_live, pattern, n_to_come);
}

policy::Places HeadStore::hi_places(const Spec& spec, uint64_t n_live, uint8_t of_pattern, uint32_t n_to_come) const {
  const policy::Policy& policy = policy::policy_of(spec.importance);
  if (policy.places) return policy.places(spec, n_live);
  if (policy.patterns.n) {
    uint64_t n_punctuation = 0;
    if (policy.keeps_punctuation)
      n_punctuation = n_to_come + count_punctuation(hi, spec.sinks) + count_punctuation(staged, spec.sinks);
    return policy.patterns.places(of_pattern, spec, n_live, n_punctuation);
  }
  const uint64_t own = policy::hi_places(spec.keep, n_live);
  const uint64_t passed_on = policy::n_recent(spec.recent, policy::hi_places(spec.keep, n_before));
  return {own + passed_on, policy::n_recent(spec.recent, own) + passed_on};
}

void HeadStore::pass_on(HeadStore& next, const Spec& spec, uint64_t n_live, CommitScratch& scratch) {
  next.more_bits = more_bits;
  next.pattern = pattern;
  next.n_before = 0;
  if (!policy::policy_of(spec.importance).reserves_recent() || staged.size()) return;
  const policy::Places all = hi_places(spec, n_live);
  demote_to(spec, {all.total - all.recent, 0}, scratch);
  next.n_before = uint32_t(std::min<uint64_t>(n_before + n_live, UINT32_MAX));
}

void HeadStore::demote_surplus(const Spec& spec, uint64_t n_live, CommitScratch& scratch) {
  if (!staged.size()) demote_to(spec, hi_places(spec, n_live), scratch);
}

void HeadStore::demote_to(const Spec& spec, policy::Places places, CommitScratch& scratch) {
  if (hi.size() <= places.total) return;
  scratch.k.resize(codec::kMaxHeadDim);
  scratch.v.resize(codec::kMaxHeadDim);
  scratch.resize_rows(staged.layout().dim_k, staged.layout().dim_v);
  choose_victims(spec, places, scratch);
  if (!evict) lo.reserve(uint32_t(scratch.victims.size()));
  std::sort(scratch.victims.begin(), scratch.victims.end(), std::greater<>());
  for (const uint32_t victim : scratch.victims) demote_hi(victim, scratch);
  encode_waiting(scratch);
  hi.clear_unused();
  hi.shrink();
}

void HeadStore::weigh(const Spec& spec, uint64_t n_live, uint32_t first, std::span<policy::ErrorWeight::Sums> parts,
                      CommitScratch& scratch) const {
  const uint32_t n_hi = hi.size(), n_staged = staged.size(), dim = staged.layout().dim_k;
  std::fill(parts.begin(), parts.end(), policy::ErrorWeight::Sums());
  if (!freezes_next() || queries.empty()) return;
  scratch.k.resize(codec::kMaxHeadDim);
  scratch.v.resize(codec::kMaxHeadDim);
  const policy::Places places = hi_places(spec, n_live, plan_pattern(spec, n_live, scratch), 0);
  choose_victims(spec, places, scratch);
  scratch.staged_victim.assign(n_staged, 0);
  for (const uint32_t victim : scratch.victims) {
    if (victim >= n_hi) scratch.staged_victim[victim - n_hi] = 1;
  }
  const std::vector<double> v_mean = staged_moments(*this, scratch).v_mean;
  std::vector<policy::ErrorWeight> errors;
  for (uint32_t part = first; part < first + parts.size(); ++part) {
    QuerySample::Part sampled = queries.sample.part(part, kWeightParts, dim);
    errors.emplace_back(std::move(sampled.queries), std::move(sampled.arrivals), v_mean, dim, uint32_t(places.recent));
  }
  for_each_staged(*this, scratch, [&](uint32_t slot, const float* k, const float* v) {
    for (policy::ErrorWeight& of : errors) of.add(k, v, staged.arrival(slot), scratch.staged_victim[slot]);
  });
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = errors[i].sums();
}

void HeadStore::lower_bits(const Spec& spec, const codec::BlockLayout& uniform) {
  if (evict || (spec.mixed() && !own_lo_)) return;  // a head that is not frozen plans its bits when it is
  auto lower = std::make_unique<codec::BlockLayout>(spec.mixed() ? policy::lower_bits(*own_lo_, spec.bits + more_bits)
                                                                 : uniform);
  if (!own_lo_) charge_.set(calibration_bytes() + sizeof(codec::BlockLayout));
  lo.reencode(*lower);
  own_lo_ = std::move(lower);
}

bool HeadStore::commits(const Spec& spec, uint64_t n_live, uint32_t from) const {
  const uint32_t n_staged = staged.size();
  if (n_staged == 0 || spec.uncompressed()) return false;
  const bool began = frozen || n_live > n_staged;  // hi and lo are empty where all that was compressed is evicted
  if (!began && n_staged < from) return false;
  return frozen || !spec.needs_calibration() || n_staged >= kMinCalibrationTokens;
}

void HeadStore::commit(const Spec& spec, uint64_t n_live, uint32_t from, CommitScratch& scratch, uint32_t n_most) {
  if (!commits(spec, n_live, from)) return;
  const uint32_t n_hi = hi.size(), n_staged = staged.size();
  const bool settles = policy::policy_of(spec.importance).settle != nullptr;
  const uint32_t first = settles || staged_in_bytes() ? 0 : n_staged - std::min(n_most, n_staged);  // that is moved
  scratch.k.resize(codec::kMaxHeadDim);
  scratch.v.resize(codec::kMaxHeadDim);
  scratch.resize_rows(staged.layout().dim_k, staged.layout().dim_v);

  const uint8_t planned = plan_pattern(spec, n_live, scratch);
  choose_victims(spec, hi_places(spec, n_live, planned, 0), scratch);
  std::erase_if(scratch.victims, [&](uint32_t victim) { return victim >= n_hi && victim < n_hi + first; });
  const uint32_t n_victims = uint32_t(scratch.victims.size()), n_moved = n_staged - first;
  scratch.staged_victim.assign(n_staged, 0);
  const bool freezing = spec.needs_calibration() && !frozen;
  Calibration calibration = freezing ? plan_calibration(*this, spec, scratch) : Calibration();
  Tier own_lo(calibration.lo ? *calibration.lo : lo.layout(), *account_);
  if (!evict) (calibration.lo ? own_lo : lo).reserve(n_victims);
  // Victims leave hi before survivors enter it, so hi only grows by what it ends up with.
  if (n_moved > n_victims) hi.reserve(n_moved - n_victims);
  if (freezing) {
    charge_.set(calibration_bytes() + calibration.transform.bytes() +
                (calibration.lo ? sizeof(codec::BlockLayout) : 0));
  }

  // Nothing fails from here on.
  pattern = planned;
  if (calibration.lo) {
    lo = std::move(own_lo);
    own_lo_ = std::move(calibration.lo);
  }
  if (freezing) {
    transform = std::move(calibration.transform);
    queries = {};
    frozen = true;
  }

  if (settles) store_scores(scratch);

  // From the highest slot down: removing one moves the last one into its place, and that one stays.
  std::sort(scratch.victims.begin(), scratch.victims.end(), std::greater<>());
  auto victim = scratch.victims.begin();
  for (; victim != scratch.victims.end() && *victim >= n_hi; ++victim) scratch.staged_victim[*victim - n_hi] = 1;
  for (; victim != scratch.victims.end(); ++victim) demote_hi(*victim, scratch);
  move_staged(first, scratch);
  if (hi.size() < n_hi) hi.clear_unused();
  release_staged(first);
  recount();  // downwards
}

}  // namespace mikv::tier
