// Orthonormal Hadamard rotation of a head: spreads an outlier channel over all channels before quantising.
// H is symmetric and its own inverse, so q.k is unchanged when both are rotated, and rotating the output again undoes
// the rotation of V. Dimensions that are no power of two are rotated in blocks of their largest power-of-two divisor.
#pragma once

#include <cmath>
#include <cstdint>

namespace mikv::codec {

/// In place, `dim` channels; O(dim log dim).
inline void hadamard(float* values, uint32_t dim) {
  const uint32_t block = dim & (0u - dim);
  for (uint32_t start = 0; start < dim; start += block) {
    float* x = values + start;
    for (uint32_t half = 1; half < block; half *= 2) {
      for (uint32_t i = 0; i < block; i += 2 * half) {
        for (uint32_t j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
      }
    }
  }
  const float norm = 1.0f / std::sqrt(float(block));
  for (uint32_t i = 0; i < dim; ++i) values[i] *= norm;
}

}  // namespace mikv::codec
