// A generator of our own, so that a seed gives the same prompts and data on every machine and standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace mikv::cli {

/// SplitMix64 (Steele, Lea, Flood 2014): 64 bits of state, passes BigCrush.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  /// Uniform in 0..n-1. Values past the last whole multiple of n are drawn again, so that none is likelier.
  uint32_t below(uint32_t n) {
    const uint64_t limit = UINT64_MAX - UINT64_MAX % n;
    uint64_t value = next();
    while (value >= limit) value = next();
    return uint32_t(value % n);
  }

  double uniform() { return double(next() >> 11) * 0x1.0p-53; }  ///< [0, 1)

  /// Normal with mean 0 and variance 1 (Box-Muller).
  float gaussian() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return float(radius * std::cos(2.0 * std::numbers::pi * uniform()));
  }

 private:
  uint64_t state_;
};

}  // namespace mikv::cli
