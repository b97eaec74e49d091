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

#include <cstdint>
#include <vector>

#include "mikv/types.hpp"
#include "policy/mixed_calibration.hpp"

namespace mikv::policy {

class RopeForecast {
 public:
  explicit RopeForecast(const Rope& rope);

  /// Adds a key as it is stored, RoPE applied, [dim_k].
  void add(const float* key, uint32_t position);

  /// Replaces the moments of the added keys by those over positions below `horizon`. Squares of queries stay where keys
  /// hardly turn, and become equal within a pair where they turn around.
  void apply(double horizon, Moments& moments) const;

 private:
  /// By pair. turn: e^{-i angle p} at the last position; step: what the next position turns it by.
  struct Pairs {
    std::vector<double> turn_re, turn_im, step_re, step_im;
    std::vector<double> z_re, z_im, square_re, square_im, norm;  ///< sums of z, z^2, |z|^2
    std::vector<float> a, b;                                     ///< of the last key
  };
  void turn_to(uint32_t position);

  const Rope& rope_;
  Pairs pairs_;
  uint64_t n_ = 0;
  uint32_t last_ = 0;  ///< position
};

}  // namespace mikv::policy
