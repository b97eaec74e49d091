// Scale8: a scale in one byte, unsigned: four bits of exponent, four of mantissa; 2^-12 to 2^4 * (1 - 1/32), in steps
// of 1/16 of a power of two, so that rounding moves a scale by at most 3 %: 0.0009 of a value's square, against 0.0095
// that 4 bits lose. Decoding is a shift and an addition: the byte becomes the top of a float's mantissa and the bottom
// of its exponent.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace mikv::codec {

inline constexpr uint32_t kScale8Shift = 19;                       // 23 bits of mantissa less 4
inline constexpr uint32_t kScale8Bias = uint32_t{127 - 12} << 23;  // byte 0 is 2^-12

inline float scale8_to_f32(uint8_t scale) {
  return std::bit_cast<float>((uint32_t{scale} << kScale8Shift) + kScale8Bias);
}

/// The nearest one; what lies outside of the range becomes its end. scale is finite.
inline uint8_t scale8_from_f32(float scale) {
  const float inside = std::clamp(scale, scale8_to_f32(0), scale8_to_f32(255));
  const uint32_t rounded = std::bit_cast<uint32_t>(inside) - kScale8Bias + (1u << (kScale8Shift - 1));
  return uint8_t(std::min(rounded >> kScale8Shift, 255u));
}

}  // namespace mikv::codec
