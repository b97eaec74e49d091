// QueryTally: statistics of the queries that a head has met, kept until its segment is frozen.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "codec/block.hpp"

namespace mikv::tier {

/// For balancers: largest magnitudes, and squares of queries times the softmax scale. Sums are
/// integers, so that they do not depend on the order of threads.
struct QueryTally {
  std::array<float, codec::kMaxHeadDim> max{};
  std::array<uint64_t, codec::kMaxHeadDim> square{};
  uint64_t n = 0;  ///< rows

  static constexpr double kOne = 1 << 28;  ///< of the sums; a square counts 2^12 at most, so 2^24 rows fit
  void add(const float* q, uint32_t dim, float scale) {
    ++n;
    for (uint32_t c = 0; c < dim; ++c) {
      max[c] = std::max(max[c], std::abs(q[c]));  // NaN changes nothing
      const double x = double(q[c]) * scale, most = 1 << 12;
      square[c] += uint64_t(x * x < most ? x * x * kOne : most * kOne);
    }
  }
};

}  // namespace mikv::tier
