// Order: what policies share. A policy gives every token a key; the lowest keys go first, and ties are left to the
// index. Cost: O(n); one victim allocates nothing.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace mikv::policy {

/// Orders as floats do, as an unsigned: compares without branches, vectorises, and is total even with NaN.
inline uint32_t sortable(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // + 0: -0 and 0 are the same score
  const uint32_t sign = 0u - (bits >> 31);                      // all ones if negative
  return bits ^ (sign | 0x80000000u);
}

/// The lowest score first, the older first among equals.
inline uint64_t score_key(float score, uint32_t arrival) { return uint64_t{sortable(score)} << 32 | arrival; }

/// The arrival of the token that came last; 0 if there is none.
inline uint32_t newest_of(std::span<const uint32_t> arrivals) {
  uint32_t newest = 0;
  for (const uint32_t arrival : arrivals) newest = std::max(newest, arrival);
  return newest;
}

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

}  // namespace mikv::policy
