// scissorhands: the tokens that were important again and again stay important. A token is important to a query if its
// attention is above the mean, 1/t of the t tokens that the query sees. Its score is the number of queries of the
// history window to which it was important. The last kRecent tokens stay too. Source: Scissorhands, arXiv 2305.17118.
//
// Records, of the prompt's last kHistory queries and of every generated token's, 1 for each query head to which a token
// was important. A prompt in several calls is recorded as under snapkv.
//
// Our reading, where it differs from the source or the source leaves a choice:
// - The history window is 400 queries, the recent window 10 tokens, for every model and budget.
// - The source keeps a bit for each token and query of the window. Here a count fades by 1/kHistory with each generated
//   token, so that a query counts for kHistory steps on average, and a token takes no more memory than under h2o.
// - The source counts the queries to which a token was not important, and drops the highest count. For tokens older
//   than the window that is the same order; younger ones had fewer queries to be important to.
// - The source drops half of the cache when it is full. Here the lowest score leaves at each step, as everywhere.
// - The source gives later layers more places. Here all layers have the same share.
//
// Cost: a second product of queries and keys for the last kHistory queries of a prompt, each row by itself; O(n) per
// choice. A budget below kRecent tokens keeps the most recent and looks at no score.
#pragma once

#include <cmath>

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

namespace scissorhands {

inline constexpr uint32_t kHistory = 400;
inline constexpr uint32_t kRecent = 10;

/// Lets what generated tokens find in hi fade. What the commit of a prompt finds is of the window already, and so it is
/// where a later prompt has filled it.
inline void settle(std::span<float> scores, std::span<const uint32_t>, size_t n_hi, bool compressed,
                   std::vector<uint32_t>&) {
  const size_t n_staged = scores.size() - n_hi;
  if (!compressed || n_staged >= kHistory) return;
  const float left = std::pow(1.0f - 1.0f / float(kHistory), float(n_staged));
  for (float& score : scores.first(n_hi)) score *= left;
}

/// The last kRecent arrivals go last, the oldest of them first; of the others the lowest score goes first.
inline void choose(const Choice&, std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_keep,
                   std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const uint32_t newest = newest_of(arrivals);
  const auto key = [&](uint32_t i) {
    return newest - arrivals[i] < kRecent ? uint64_t{UINT32_MAX} << 32 | arrivals[i]
                                          : score_key(scores[i], arrivals[i]);
  };
  append_lowest(scores.size(), scores.size() - n_keep, key, victims, scratch);
}

}  // namespace scissorhands

inline constexpr Policy kScissorhands{
    .importance = Importance::scissorhands,
    .name = "scissorhands",
    .own_keys = {},
    .recording = {.attention = true, .last_queries = scissorhands::kHistory, .steps = true, .above_mean = true},
    .settle = scissorhands::settle,
    .choose = scissorhands::choose,
    .preset_keys = "importance=scissorhands,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "what many queries attended to; the rest is lost",
};

}  // namespace mikv::policy
