// HeadStore: what one KV head holds of one segment: staged tokens, the hi tier and the lo tier.
//
// A token is staged first: in f16 and the engine's coordinates, or in bytes where a budget leaves no room for that.
// commit() moves it to hi or lo, in the segment's coordinates. The first commit freezes the segment: it computes centre
// and balancer from the staged tokens. A demoted token is never promoted.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "codec/transform.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"
#include "policy/error_weight.hpp"
#include "policy/policy.hpp"
#include "tier/charge.hpp"
#include "tier/commit_scratch.hpp"
#include "tier/layouts.hpp"
#include "tier/query_statistics.hpp"
#include "tier/tier.hpp"

namespace mikv::tier {

/// Minimum number of tokens before the first compression of a segment. Centres and balancers are computed from these
/// tokens and then fixed. Measured: freezing after 16 instead of 256 tokens raises KL divergence 11 times
/// (docs/adr/0002-staged-tier.md).
inline constexpr uint32_t kFirstTokens = 256;

/// How many tokens of a prompt that is compressed as it is read one segment holds. RoPE turns keys away from the
/// coordinates that were frozen on a segment's first tokens; a segment costs each KV head about as much as 16 tokens
/// (docs/adr/0014-segments-of-a-long-prompt.md).
inline constexpr uint32_t kSegmentTokens = 2048;

/// Minimum number of tokens to calibrate from: fewer would describe themselves, not the head. They stay staged.
inline constexpr uint32_t kMinCalibrationTokens = 16;

/// Parts in which a head's sampled queries are weighed, so that several threads may. Its weight is their sum.
inline constexpr uint32_t kWeightParts = 2;

class HeadStore {
 public:
  /// `layouts` and `account` are borrowed and outlive the head.
  HeadStore(const Layouts& layouts, const Spec& spec, MemoryAccount& account);
  /// The staged tokens and query statistics of `other` under other layouts; other.compressed() must be false.
  HeadStore(const HeadStore& other, const Layouts& layouts, const Spec& spec, MemoryAccount& account);
  HeadStore(HeadStore&&) noexcept = default;

  Tier staged, hi, lo;
  codec::Transform transform;         ///< of hi and lo
  codec::Transform staged_transform;  ///< of staged tokens: keys less a centre while in bytes, else none
  QueryStatistics queries;            ///< empty without a balancer, before record(), and once the segment is frozen
  bool frozen = false;
  bool rope_shifted = false;  ///< positions of staged keys were shifted, so arrivals are not positions
  double more_bits = 0.0;     ///< per element of its lo tier, beyond those of the spec (share_bits)
  std::optional<policy::ErrorWeight::Sums> weight;  ///< sum of weigh(), once weighed, until bits are shared
  /// Tokens of the segments that this one continues and whose places for recent tokens it took over (pass_on).
  uint32_t n_before = 0;
  uint8_t pattern = 0;  ///< that this head has picked (policy::Patterns); 0: none yet, or the policy has none
  bool evict;

  const Positions& positions() const { return *positions_; }
  bool staged_in_bytes() const { return staged.layout().bits != 16; }
  const codec::Transform& transform_of(const Tier& tier) const {
    return &tier == &staged ? staged_transform : transform;
  }

  /// Records queries from now on, if it is not frozen and its spec has use for them. May throw std::bad_alloc.
  void record(const Layouts& layouts, const Spec& spec);
  /// True if commit() would freeze the segment.
  bool freezes_next() const { return !frozen && staged.size() >= kMinCalibrationTokens; }
  bool compressed() const { return frozen || hi.size() > 0 || lo.size() > 0; }
  uint32_t stored() const { return staged.size() + hi.size() + lo.size(); }

  /// True if commit() would compress something.
  bool commits(const Spec& spec, uint64_t n_live, uint32_t from) const;
  /// Compresses what is staged. n_live: live cells of the segment, evicted ones included (the S of floor(keep * S)).
  /// from: as of LayerCache::commit(). n_most: of the staged tokens, the last ones; the others stay staged, for calls
  /// to come. All at once, if a policy settles scores, or in bytes. May throw std::bad_alloc; nothing changes then.
  void commit(const Spec& spec, uint64_t n_live, uint32_t from, CommitScratch& scratch, uint32_t n_most = UINT32_MAX);

  /// Encodes staged tokens in bytes, in place, and later ones until the next commit; with `hadamard` keys are rotated.
  /// No effect with too few tokens for a centre, or where some are compressed. May throw std::bad_alloc; nothing
  /// changes then.
  void stage_in_bytes(const Layouts& layouts, bool hadamard);
  /// True if stage_in_bytes() would have an effect on n_tokens staged tokens. Outlier channels wait in f16.
  bool goes_to_bytes(const Layouts& layouts, uint32_t n_tokens) const;

  /// Hands the places in hi for recent tokens, and the bits, to `next`, which is empty and holds what follows; demotes
  /// the tokens that had them. May throw std::bad_alloc; what was demoted until then stays so.
  void pass_on(HeadStore& next, const Spec& spec, uint64_t n_live, CommitScratch& scratch);

  /// n_to_come: of the n_live tokens, those that are not staged yet; each may be punctuation.
  policy::Places hi_places(const Spec& spec, uint64_t n_live, uint32_t n_to_come = 0) const;

  /// Demotes what a lowered spec has no places in hi for; staged tokens wait for commit(). May throw std::bad_alloc;
  /// what was demoted until then stays so.
  void demote_surplus(const Spec& spec, uint64_t n_live, CommitScratch& scratch);
  /// Gives back the memory of unused blocks.
  void trim() {
    for (Tier* tier : {&staged, &hi, &lo}) tier->shrink();
  }
  /// Encodes the lo tier in fewer bits, in place: in `uniform`, or, where bits differ by tile, spec.bits on average.
  void lower_bits(const Spec& spec, const codec::BlockLayout& uniform);

  /// Effect of the lo tier's errors on the sampled queries of parts first, first + 1, ..., were the staged tokens
  /// committed now. Zeros without queries or in a frozen segment. May throw std::bad_alloc.
  void weigh(const Spec&, uint64_t n_live, uint32_t first, std::span<policy::ErrorWeight::Sums>, CommitScratch&) const;

  /// Sets the layout of `lo`, where bits differ by head. Call it before the first token is in `lo`.
  void set_lo_layout(const codec::BlockLayout& layout);

  /// Charges the present calibration_bytes(). May throw std::bad_alloc where they grew.
  void recount() { charge_.set(calibration_bytes()); }

  uint64_t charged_bytes() const;  ///< that this head has charged
  /// Names another account, which has been charged for charged_bytes(), as the one that they are released from.
  void change_account(MemoryAccount& account);

  uint64_t calibration_bytes() const;

 private:
  void release_staged(uint32_t first);
  policy::Places hi_places(const Spec& spec, uint64_t n_live, uint8_t of_pattern, uint32_t n_to_come) const;
  void rank(const policy::Policy& policy, CommitScratch& scratch) const;
  uint8_t plan_pattern(const Spec& spec, uint64_t n_live, CommitScratch& scratch) const;
  void choose_victims(const Spec& spec, policy::Places places, CommitScratch& scratch) const;
  /// Keeps the scores that choose_victims() settled.
  void store_scores(const CommitScratch& scratch);
  void demote_to(const Spec& spec, policy::Places places, CommitScratch& scratch);
  void demote_hi(uint32_t slot, CommitScratch& scratch);
  void keep_staged(uint32_t slot, float* k, float* v);
  void drop_staged(uint32_t slot, float* k, float* v, CommitScratch& scratch);
  void wait_for_block(uint32_t cell, const float* k, const float* v, CommitScratch& scratch);
  void encode_waiting(CommitScratch& scratch);
  void append_lo(uint32_t cell, const float* k, const float* v, CommitScratch& scratch);
  void move_staged(uint32_t first, CommitScratch& scratch);

  const codec::BlockLayout* staged_f16_;
  MemoryAccount* account_;
  Charge charge_;  ///< of calibration_bytes()
  const Positions* positions_;
  std::unique_ptr<codec::BlockLayout> own_lo_;  ///< of `lo` once frozen, where bits differ by head
};

}  // namespace mikv::tier
