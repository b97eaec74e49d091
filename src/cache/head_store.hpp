// HeadStore: what one KV head holds of one frame: staged tokens, the hi tier and the lo tier.
//
// A token is put staged, in f16 and the engine's coordinates. commit() moves it to hi or lo, in the frame's coordinates;
// the first commit freezes the frame (centre, balancer) from what is staged. A demoted token is never promoted.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cache/tier.hpp"
#include "codec/transform.hpp"
#include "mikv/cache.hpp"
#include "mikv/spec.hpp"

namespace mikv::cache {

/// A centre and a balancer from fewer tokens would describe those tokens, not the head: they stay staged until then.
inline constexpr uint32_t kMinFrameTokens = 16;

/// Layouts of the tiers under a spec.
struct Layouts {
  codec::BlockLayout staged, hi, lo;
  bool evict = false;  ///< there is no lo tier: what is demoted is lost

  /// Some tier holds codes, not halves.
  bool quantised() const { return hi.bits < 16 || (!evict && lo.bits < 16); }
};

/// Working memory of commit(), kept between calls so that a generation step allocates nothing.
struct CommitScratch {
  std::vector<float> scores, k, v;
  std::vector<uint32_t> arrivals, victims, policy;
  std::vector<uint8_t> staged_victim;
};

class HeadStore {
 public:
  HeadStore(const Layouts& layouts, bool hadamard, uint32_t dim_k, bool track_queries);
  /// The staged tokens and query statistics of `other` under other layouts; other.compressed() must be false.
  HeadStore(const HeadStore& other, const Layouts& layouts, bool hadamard, bool track_queries);
  HeadStore(HeadStore&&) noexcept = default;

  Tier staged, hi, lo;
  codec::Transform transform;
  /// max|q_c| so far, [dim_k]; empty if the spec has no balancer or the frame is frozen.
  std::vector<float> q_max;
  bool frozen = false;
  bool evict;

  bool compressed() const { return frozen || hi.size() > 0 || lo.size() > 0; }
  uint32_t stored() const { return staged.size() + hi.size() + lo.size(); }

  /// Compresses what is staged. n_live: live cells of the frame, evicted ones included (the S of floor(keep * S)).
  /// May throw std::bad_alloc; nothing changes then.
  void commit(const Spec& spec, uint64_t n_live, CommitScratch& scratch);

  /// Raises q_max by |q[dim_k]| of one query row; safe from several threads.
  void note_query(const float* q);

  uint64_t frame_bytes() const { return transform.bytes() + q_max.size() * sizeof(float); }

 private:
  void choose_victims(const Spec& spec, uint64_t n_live, CommitScratch& scratch) const;
  void freeze(const Spec& spec, CommitScratch& scratch);
  void load_staged(uint32_t slot, CommitScratch& scratch) const;
  void demote_hi(uint32_t slot, CommitScratch& scratch);
  void keep_staged(uint32_t slot, CommitScratch& scratch);
  void drop_staged(uint32_t slot, CommitScratch& scratch);
  void append_lo(uint32_t cell, const CommitScratch& scratch);
};

}  // namespace mikv::cache
