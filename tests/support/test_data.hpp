// Test data: one portable generator, so that a printed seed gives the same numbers on every machine and compiler
// (the distributions of <random> do not), and half precision written independently of the library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "mikv/spec.hpp"

namespace mikv::test {

/// The seed of this run: MIKV_TEST_SEED, or 1.
inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("MIKV_TEST_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 1ull;
  }();
  return value;
}

/// splitmix64. Streams with different `stream` are independent: give each use its own.
class Random {
 public:
  explicit Random(uint64_t stream) : state_(seed() * 0x9e3779b97f4a7c15u ^ stream * 0xd1342543de82ef95u) {}

  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  uint32_t below(uint32_t n) { return uint32_t((next() >> 32) * n >> 32); }
  /// In [low, high): 24 bits, exact in float.
  float uniform(float low, float high) { return low + (high - low) * float(next() >> 40) * 0x1p-24f; }
  /// Mean 0, variance 1, in [-6, 6]: the sum of 12 uniforms. No libm, so no platform.
  float normal() {
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += uniform(0.0f, 1.0f);
    return sum;
  }
  std::vector<float> normals(size_t n) {
    std::vector<float> values(n);
    for (float& x : values) x = normal();
    return values;
  }

 private:
  uint64_t state_;
};

/// Bits of the nearest half (ties to even); beyond the range infinity. By arithmetic on doubles, not on bits.
inline uint16_t to_half(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::abs(x);
  if (std::isnan(x)) return 0x7e00;
  if (magnitude >= 65520.0) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const double steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // of the last place; 2048 carries over
  return uint16_t(sign | (uint32_t(exponent + 14) * 1024 + uint32_t(steps)));
}

inline double from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double magnitude =
      exponent == 31  ? (fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity())
      : exponent == 0 ? std::ldexp(fraction, -24)
                      : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/// What a half stores of x.
inline float rounded_to_half(float x) { return float(from_half(to_half(x))); }

/// Half an ulp of a half of this magnitude: the most that rounding to half changes it.
inline double half_rounding(double x) { return std::max(std::abs(x) * 0x1p-11, 0x1p-25); }

inline constexpr double kF32Epsilon = 0x1p-24;  ///< relative rounding error of one float operation

/// The most that Eq. 1 of MiKV may change an element of a group of values from low to high.
///   alpha = (high - low) / top, top = 2^N - 1, and beta = low are stored as halves: errors e_a, e_b of
///   half an ulp. A code is the one nearest to x: alpha'/2 with alpha' <= alpha + e_a, unless x lies before the
///   first level or beyond the last because beta or alpha was rounded: then top * e_a + e_b. That is the larger one for
///   subnormal alpha, or where the group is narrow for its offset.
///   Computing it in single precision adds a few roundings of the group's largest value.
inline double quantisation_bound(double low, double high, Format format) {
  const double top = double((1u << format_bits(format)) - 1);
  const double alpha = (high - low) / top;
  const double alpha_error = half_rounding(alpha);
  const double beta_error = from_half(to_half(low)) == low ? 0.0 : half_rounding(low);
  return std::max((alpha + alpha_error) / 2.0, top * alpha_error + beta_error) +
         4.0 * kF32Epsilon * std::max({std::abs(low), std::abs(high), high - low});
}

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace mikv::test
