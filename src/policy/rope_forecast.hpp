// RoPE forecast: the moments of keys and queries over a whole context, from those of its first tokens.
//
// RoPE (arXiv 2104.09864) turns pair i of a key at position p by angle_i * p. A pair that turns by less than a radian
// over a prompt has a mean that is large beside its spread, and another mean some thousand tokens later: a centre
// frozen on the prompt would be wrong, and its tiles would have too few bits. With z = e^{-i angle p} (k_a + i k_b),
// the pair as it was before RoPE, of the same distribution at all positions, the pair's moments over positions 0 to N
// follow from E z, E z^2 and E |z|^2:
//   mean = E z * e_1, squares = (E |z|^2 +- Re(E z^2 * e_2)) / 2,
//   e_m = mean of e^{i m angle p} = (e^{i m angle N} - 1) / (i m angle N).
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

#include "mikv/types.hpp"
#include "policy/mixed_calibration.hpp"

namespace mikv::policy {

class RopeForecast {
 public:
  explicit RopeForecast(const Rope& rope) : rope_(rope), sums_(rope.angles.size()) {}

  /// Adds a key as it is stored, RoPE applied, [dim_k].
  void add(const float* key, uint32_t position);

  /// Replaces the moments of the added keys by those over positions below `horizon`. Squares of queries stay where keys
  /// hardly turn, and become equal within a pair where they turn around.
  void apply(double horizon, Moments& moments) const;

 private:
  struct Sums {
    std::complex<double> z, z_square;
    double norm = 0.0;
  };
  const Rope& rope_;
  std::vector<Sums> sums_;  // by pair
  uint64_t n_ = 0;
};

}  // namespace mikv::policy
