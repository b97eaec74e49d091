// h2o: keeps the most recent tokens and, of the others, the "heavy hitters", which received most attention. The spec
// key `recent` divides the places in hi: n_keep - floor((1 - recent) * n_keep) places are for the most recent. Sources:
// H2O, arXiv 2306.14048; MiKV, arXiv 2402.18096, section 3, which demotes by it.
//
// Records the attention of all queries of all calls; the score is its sum, over queries and the group's query heads.
// The lowest score goes first, the older first among equals. Cost: a second product of queries and keys in prefill;
// O(n) per choice.
#pragma once

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

/// The single victim of a generation step, by three passes that vectorise; n if the general way is needed.
///
/// The most recent arrivals are all in hi, unless cells were erased or overwritten. The recent ones are then those with
/// arrival > newest - n_recent. One pass counts whether that holds.
inline size_t h2o_single_victim(std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_recent) {
  const size_t n = scores.size();
  const uint32_t newest = newest_of(arrivals);
  if (newest < n_recent) return n;
  const uint32_t last_old = newest - uint32_t(n_recent);
  uint32_t n_counted = 0;
  for (size_t i = 0; i < n; ++i) n_counted += arrivals[i] > last_old;
  if (n_counted != n_recent) return n;

  constexpr uint32_t kProtected = UINT32_MAX;
  uint32_t lowest_score = kProtected;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t score = arrivals[i] > last_old ? kProtected : sortable(scores[i]);
    lowest_score = std::min(lowest_score, score);
  }
  size_t victim = n;
  for (size_t i = 0; i < n; ++i) {  // the first of that score, and then only older ones
    if (sortable(scores[i]) != lowest_score || arrivals[i] > last_old) continue;
    if (victim == n || arrivals[i] < arrivals[victim]) victim = i;
  }
  return victim;
}

inline void choose_h2o(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                       uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const size_t n = scores.size(), n_victims = n - n_keep, recent = n_recent(choice.recent, n_keep);
  if (n_victims == 1) {
    const size_t victim = h2o_single_victim(scores, arrivals, recent);
    if (victim < n) {
      victims.push_back(uint32_t(victim));
      return;
    }
  }
  scratch.resize(n);
  std::iota(scratch.begin(), scratch.end(), 0u);
  const auto older = [&](uint32_t a, uint32_t b) {
    return arrivals[a] != arrivals[b] ? arrivals[a] < arrivals[b] : a < b;
  };
  const auto first_recent = scratch.end() - ptrdiff_t(recent);
  if (recent > 0) std::nth_element(scratch.begin(), first_recent, scratch.end(), older);

  const auto goes_before = [&](uint32_t a, uint32_t b) {
    const uint64_t key_a = score_key(scores[a], arrivals[a]), key_b = score_key(scores[b], arrivals[b]);
    return key_a != key_b ? key_a < key_b : a < b;
  };
  const auto end = scratch.begin() + ptrdiff_t(n_victims);
  if (end < first_recent) std::nth_element(scratch.begin(), end, first_recent, goes_before);
  victims.insert(victims.end(), scratch.begin(), end);
}

inline constexpr Policy kH2o{
    .importance = Importance::h2o,
    .name = "h2o",
    .own_keys = "recent",
    .recording = {.attention = true},
    .settle = nullptr,
    .choose = choose_h2o,
    .preset_keys = "importance=h2o,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "heavy hitters and recent; the rest is lost",
};

}  // namespace mikv::policy
