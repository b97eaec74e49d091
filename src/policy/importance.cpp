#include "policy/importance.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace mikv::policy {
namespace {

/// Orders as floats do, as an unsigned: compares without branches, vectorises, and is total even with NaN.
uint32_t sortable(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // + 0: -0 and 0 are the same score
  const uint32_t sign = 0u - (bits >> 31);                      // all ones if negative
  return bits ^ (sign | 0x80000000u);
}

uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Keys: the lowest goes first. Ties are left to the index.

uint64_t streaming_key(uint32_t arrival, uint32_t sinks) {
  return arrival < sinks ? (uint64_t{1} << 32) + (sinks - 1 - arrival) : arrival;
}

uint64_t random_key(uint32_t arrival, uint64_t seed) { return splitmix64(splitmix64(seed) ^ arrival); }

uint64_t h2o_key(float score, uint32_t arrival) { return uint64_t{sortable(score)} << 32 | arrival; }

/// Index of the lowest key among n > 0 tokens.
template <typename Key>
uint32_t lowest(size_t n, const Key& key) {
  uint32_t best = 0;
  uint64_t best_key = key(0);
  for (uint32_t i = 1; i < n; ++i) {
    const uint64_t candidate = key(i);
    best = candidate < best_key ? i : best;
    best_key = std::min(candidate, best_key);
  }
  return best;
}

/// Appends the n_victims tokens of lowest key.
template <typename Key>
void append_lowest(size_t n, size_t n_victims, const Key& key, std::vector<uint32_t>& victims,
                   std::vector<uint32_t>& scratch) {
  if (n_victims == 1) {
    victims.push_back(lowest(n, key));
    return;
  }
  scratch.resize(n);
  std::iota(scratch.begin(), scratch.end(), 0u);
  const auto goes_before = [&](uint32_t a, uint32_t b) {
    const uint64_t key_a = key(a), key_b = key(b);
    return key_a != key_b ? key_a < key_b : a < b;
  };
  const auto end = scratch.begin() + ptrdiff_t(n_victims);
  if (n_victims < n) std::nth_element(scratch.begin(), end, scratch.end(), goes_before);
  victims.insert(victims.end(), scratch.begin(), end);
}

/// The one h2o victim of a generation step, by three passes that vectorise; n if the case needs the general way.
///
/// The most recent arrivals all sit in hi, unless cells were erased or overwritten, so the recents are those with
/// arrival > newest - n_recent. One pass counts whether that is so.
size_t h2o_single_victim(std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_recent) {
  const size_t n = scores.size();
  uint32_t newest = 0;
  for (size_t i = 0; i < n; ++i) newest = std::max(newest, arrivals[i]);
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

void append_h2o(std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_keep, size_t n_recent,
                std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const size_t n = scores.size();
  const size_t n_victims = n - n_keep;
  if (n_victims == 1) {
    const size_t victim = h2o_single_victim(scores, arrivals, n_recent);
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
  const auto first_recent = scratch.end() - ptrdiff_t(n_recent);
  if (n_recent > 0) std::nth_element(scratch.begin(), first_recent, scratch.end(), older);

  const auto goes_before = [&](uint32_t a, uint32_t b) {
    const uint64_t key_a = h2o_key(scores[a], arrivals[a]), key_b = h2o_key(scores[b], arrivals[b]);
    return key_a != key_b ? key_a < key_b : a < b;
  };
  const auto end = scratch.begin() + ptrdiff_t(n_victims);
  if (end < first_recent) std::nth_element(scratch.begin(), end, first_recent, goes_before);
  victims.insert(victims.end(), scratch.begin(), end);
}

}  // namespace

void choose_demotions(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                      uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const size_t n = arrivals.size();
  if (n <= n_keep) return;
  const size_t n_victims = n - n_keep;
  switch (choice.importance) {
    case Importance::full: return;
    case Importance::h2o:
      return append_h2o(scores, arrivals, n_keep, n_recent(choice.recent, n_keep), victims, scratch);
    case Importance::window:
      return append_lowest(n, n_victims, [&](uint32_t i) { return uint64_t{arrivals[i]}; }, victims, scratch);
    case Importance::streaming:
      return append_lowest(
          n, n_victims, [&](uint32_t i) { return streaming_key(arrivals[i], choice.sinks); }, victims, scratch);
    case Importance::random:
      return append_lowest(
          n, n_victims, [&](uint32_t i) { return random_key(arrivals[i], choice.seed); }, victims, scratch);
  }
}

uint64_t n_recent(double recent, uint64_t n_keep) { return n_keep - hi_budget(1.0 - recent, n_keep); }

uint64_t hi_budget(double keep, uint64_t n_tokens) {
  const double product = keep * double(n_tokens);
  const double nearest = std::nearbyint(product);
  // A decimal `keep` is off by at most half an ulp, and so is the product: 1e-9 of it is far above both, and far
  // below 1 token for any cache that fits a machine.
  const double budget = std::abs(product - nearest) <= 1e-9 * std::max(1.0, nearest) ? nearest : std::floor(product);
  return std::min(uint64_t(std::max(budget, 0.0)), n_tokens);
}

}  // namespace mikv::policy
