// Outlier channels: which of a head's channels stay in f16 under outlier=f16, after LLM.int8() (arXiv 2208.07339).
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace mikv::policy {

/// An order of the channels (codec::Axes::order): those n of the largest magnitudes, then the others; both parts rise.
/// Of equal magnitudes the lower channel counts as larger. largest: max|x| of each channel.
inline std::vector<uint16_t> outliers_first(std::span<const float> largest, uint32_t n) {
  std::vector<uint16_t> order(largest.size());
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::stable_sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return largest[a] > largest[b]; });
  std::sort(order.begin(), order.begin() + n);
  std::sort(order.begin() + n, order.end());
  return order;
}

}  // namespace mikv::policy
