// QueryStatistics: what a head remembers of the queries that it has met, until its segment is frozen.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "codec/block.hpp"
#include "tier/query_sample.hpp"

namespace mikv::tier {

/// Largest magnitudes, and sums of squares of queries times the softmax scale, of some rows. Sums are integers, so that
/// they do not depend on the order of threads.
struct QueryTally {
  std::array<float, codec::kMaxHeadDim> largest{};
  std::array<uint64_t, codec::kMaxHeadDim> square{};
  uint64_t n = 0;  ///< rows

  static constexpr double kOne = 1 << 28;  ///< of the sums; a square counts 2^12 at most, so 2^24 rows fit
  void add(const float* q, uint32_t dim, float scale) {
    ++n;
    for (uint32_t c = 0; c < dim; ++c) {
      largest[c] = std::max(largest[c], std::abs(q[c]));  // NaN changes nothing
      const double x = double(q[c]) * scale, most = 1 << 12;
      square[c] += uint64_t(x * x < most ? x * x * kOne : most * kOne);
    }
  }
};

/// Balancers are computed from the tally, bits are shared by the sample.
struct QueryStatistics {
  std::vector<float> largest;    ///< QueryTally of all rows, [dim]
  std::vector<uint64_t> square;  ///< [dim]
  uint64_t n = 0;                ///< rows
  QuerySample sample;

  /// Records nothing.
  QueryStatistics() = default;
  QueryStatistics(uint32_t n_heads, uint32_t dim) : largest(dim), square(dim), sample(n_heads, dim) {}

  bool empty() const { return largest.empty(); }

  /// Adds a tally; several threads may at once.
  void note(const QueryTally& tally) {
    constexpr auto relaxed = std::memory_order_relaxed;
    std::atomic_ref<uint64_t>(n).fetch_add(tally.n, relaxed);
    for (size_t c = 0; c < largest.size(); ++c) {
      std::atomic_ref<float> seen(largest[c]);
      float before = seen.load(relaxed);
      while (tally.largest[c] > before && !seen.compare_exchange_weak(before, tally.largest[c], relaxed)) {
      }
      std::atomic_ref<uint64_t>(square[c]).fetch_add(tally.square[c], relaxed);
    }
  }

  std::vector<double> mean_square() const {
    std::vector<double> mean(square.begin(), square.end());
    for (double& x : mean) x /= QueryTally::kOne * double(std::max<uint64_t>(1, n));
    return mean;
  }

  uint64_t bytes() const { return largest.size() * kBytesPerChannel + sample.bytes(); }
  static uint64_t bytes_of(uint32_t n_heads, uint32_t dim) {
    return dim * kBytesPerChannel + QuerySample::bytes_of(n_heads, dim);
  }

 private:
  static constexpr uint64_t kBytesPerChannel = sizeof(float) + sizeof(uint64_t);
};

}  // namespace mikv::tier
