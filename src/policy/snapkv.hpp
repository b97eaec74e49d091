// snapkv: the tokens that the end of the prompt attends to stay, with their neighbours, and so does that end. The last
// kWindow queries of a prompt are what the answer will ask about, so their attention tells which tokens it needs.
// Source: SnapKV, arXiv 2404.14469, with the window of 32 and the max pooling over 7 tokens of its LongBench runs.
//
// Records the attention of the prompt's last kWindow queries, summed over them and the group's query heads. A prompt
// may come in several calls: each call of kWindow queries or more starts the record anew, so that the last one before
// the commit decides, and a shorter rest is added to it.
//
// Settles the scores at the prompt's end: a token's score becomes the largest among those at most kReach places away,
// so that a token is kept with its context. The window's own tokens are kept whatever their scores. So are the tokens
// that are generated then, which the paper does not compress. Once hi is full, the lowest score leaves first, and then
// the oldest of window and generated tokens. A later prompt of kWindow tokens or more is scored like the first one,
// together with what hi holds.
//
// Cost: a second product of queries and keys for the last kWindow queries only; O(n log n) per prompt; O(n) per
// generation step. A budget below kWindow tokens keeps the most recent and looks at no score.
#pragma once

#include <limits>

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

namespace snapkv {

inline constexpr uint32_t kWindow = 32;
inline constexpr uint32_t kReach = 3;  // pools 7 tokens
/// Of tokens that are kept for being recent: above all sums of attention, and finite, as saved scores must be.
inline constexpr float kRecent = std::numeric_limits<float>::max();

inline void settle(std::span<float> scores, std::span<const uint32_t> arrivals, size_t n_hi, bool compressed,
                   std::vector<uint32_t>& scratch) {
  const size_t n = scores.size();
  if (compressed && n - n_hi < kWindow) {  // generated
    std::fill(scores.begin() + ptrdiff_t(n_hi), scores.end(), kRecent);
    return;
  }
  std::vector<uint32_t>& order = scratch;  // of arrival, the window's tokens last
  order.resize(n);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return arrivals[a] < arrivals[b]; });
  const size_t n_before = n - std::min<size_t>(n, kWindow);
  std::vector<float> pooled(n_before);
  for (size_t i = 0, first = 0, last = 0; i < n_before; ++i) {
    const uint64_t arrival = arrivals[order[i]];
    while (arrivals[order[first]] + uint64_t{kReach} < arrival) ++first;
    while (last < n_before && arrivals[order[last]] <= arrival + kReach) ++last;
    pooled[i] = scores[order[i]];
    for (size_t j = first; j < last; ++j) {
      const float near = scores[order[j]];
      if (near < kRecent) pooled[i] = std::max(pooled[i], near);
    }
  }
  for (size_t i = 0; i < n; ++i) scores[order[i]] = i < n_before ? pooled[i] : kRecent;
}

inline void choose(const Choice&, std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_keep,
                   std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const auto key = [&](uint32_t i) { return score_key(scores[i], arrivals[i]); };
  append_lowest(scores.size(), scores.size() - n_keep, key, victims, scratch);
}

}  // namespace snapkv

inline constexpr Policy kSnapKv{
    .importance = Importance::snapkv,
    .name = "snapkv",
    .own_keys = {},
    .recording = {.attention = true, .last_queries = snapkv::kWindow},
    .settle = snapkv::settle,
    .choose = snapkv::choose,
    .preset_keys = "importance=snapkv,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "what the end of the prompt attends to; the rest is lost",
};

}  // namespace mikv::policy
