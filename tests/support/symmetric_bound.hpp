// The error that the symmetric quantiser may make.
#pragma once

#include <algorithm>

#include "test_data.hpp"

namespace mikv::test {

/// The most that the symmetric quantiser may change an element of a group whose largest magnitude is `largest`.
///   The step alpha = largest / top, top = 2^(N-1) - 1, is stored as a half: an error e of half an ulp. A code is the
///   one nearest to x: alpha'/2 with alpha' <= alpha + e, unless x lies beyond the last level because alpha was rounded
///   down: then top * e. Computing it in single precision adds a few roundings of the largest value.
inline double symmetric_bound(double largest, Format format) {
  const double top = double((1u << (format_bits(format) - 1)) - 1), alpha = largest / top;
  const double alpha_error = half_rounding(alpha);
  return std::max((alpha + alpha_error) / 2.0, top * alpha_error) + 8.0 * kF32Epsilon * largest;
}

}  // namespace mikv::test
