// IEEE half precision, scalar: what scales, zeros, segments and the f16 tier are stored in. Kernels convert with SIMD.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mikv::codec {

inline constexpr float kF16Max = 65504.0f;

/// Half to single precision, exact for every input.
inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Shifting the half's fields into place leaves the exponent 112 too small; the product with 2^112 corrects that and
  // normalises subnormals in one step.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

/// Single to half precision, round to nearest even. Beyond the range: infinity; NaN stays NaN. Without branches, so
/// that the compiler converts several at once.
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Below 2^-14: a subnormal half; adding 0.5 rounds at its last bit, 2^-24.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return uint16_t(sign | (magnitude >= 0x477ff000u ? special : finite));  // 65520 and above round to infinity
}

/// Clamps to the finite range of f16; NaN becomes 0. Tiers store this: a group shares a scale, which one infinite
/// element would spoil.
inline float finite_f16_range(float value) {
  const float low = value > kF16Max ? kF16Max : value, clamped = low < -kF16Max ? -kF16Max : low;
  return clamped == clamped ? clamped : 0.0f;
}

}  // namespace mikv::codec
