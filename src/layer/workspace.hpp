// Scratch memory of attention: per thread, and shared between threads.
#pragma once

#include <atomic>
#include <vector>

#include "attention/kernel_api.hpp"
#include "layer/kept_logits.hpp"
#include "layer/layer_cache.hpp"
#include "tier/segment_store.hpp"

namespace mikv {
namespace attention {

/// Memory of Rows: queries in one geometry.
struct PreparedRows {
  std::vector<float> q, q_sums, q_scales, bias;
  std::vector<float> errors, bias_with_error;  ///< with_expected_error()
  std::vector<uint8_t> q_integers;
};

/// Memory of State for the rows of a tile. Tiers have a sum and an accumulator of their own if they hold values in
/// other coordinates (LayerCache::Impl::values_transformed).
struct RowState {
  std::vector<float> max, sum, acc, tier_sum, tier_acc, zeros;
  const codec::Axes* tier_axes = nullptr;  ///< of what is in tier_acc; null: nothing yet
};

/// Threads write next to each other, but not to the same cache line.
inline constexpr size_t kCacheLine = 64;

/// Result of one split of a generation step, for the thread that finishes the head last.
struct alignas(kCacheLine) Partial {
  RowState state;
  KeptLogits kept;  ///< of the split's blocks
};

struct alignas(kCacheLine) Counter {
  std::atomic<uint32_t> n{0};
};

struct TierOfHead {
  tier::HeadStore* head;
  tier::Tier* tier;
  uint64_t first_block = 0;    ///< blocks of the tiers before it
  uint64_t n_head_blocks = 0;  ///< of all tiers

  bool in_engine_coordinates() const { return tier == &head->staged && !head->staged_in_bytes(); }
  bool scored() const { return tier != &head->lo; }
};

struct alignas(kCacheLine) ThreadSlot {
  std::vector<tier::SegmentStore*> segments;  ///< of the present call
  std::vector<TierOfHead> tiers;              ///< of the present head
  PreparedRows raw, tier, outliers;
  RowState state;
  std::vector<float> mask_low, mask_high, logits, factors, decoded, weights, inverse_sum, sums;
  std::vector<float> mask_row, means;  ///< where a policy counts attention above the mean
  KeptLogits kept;                     ///< of a chunk's tile, as far as they fit
  std::vector<std::vector<float>>
      scores;  ///< [head of a call][scored slot]: of this thread's row tiles; 0 between calls
  tier::CommitScratch commit;
};

}  // namespace attention

struct Workspace::Impl {
  static constexpr uint32_t kMaxSplits = 8;  // of the blocks of a KV head in a generation step

  Impl(uint32_t n_threads, uint32_t n_calls, uint32_t n_kv_heads) : max_calls(n_calls), threads(n_threads) {
    reserve_heads(n_kv_heads);
  }
  void reserve_heads(uint32_t n_kv_heads) {
    const size_t n = size_t{max_calls} * n_kv_heads;
    if (n <= done.size()) return;
    std::vector<attention::Partial> more_partials(n * kMaxSplits);
    for (attention::ThreadSlot& slot : threads) slot.scores.resize(n);
    done = std::vector<attention::Counter>(n);
    partials = std::move(more_partials);
  }
  attention::Partial& partial(size_t head, uint32_t split) { return partials[head * kMaxSplits + split]; }

  uint32_t max_calls;
  std::vector<attention::ThreadSlot> threads;
  std::vector<attention::Partial> partials;  ///< [head of a call][split]
  std::vector<attention::Counter> done;      ///< [head of a call]: items finished; 0 between calls
};

}  // namespace mikv
