// Quantiser, Eq. 1 of MiKV (arXiv 2402.18096): asymmetric, round to nearest, one scale and one zero a group.
//   alpha = (max - min) / (2^N - 1), beta = min, code = round((x - beta) / alpha), x' = alpha * code + beta
// alpha and beta are stored as halves; codes are taken against the stored values, so their rounding costs no extra
// error except at the ends of the range.
//
// The symmetric one has no zero, and so half the bytes of scales (LLM-QAT, arXiv 2305.17888, per token):
//   alpha = max|x| / (2^(N-1) - 1), code = round(x / alpha) + 2^(N-1) - 1, x' = alpha * (code - (2^(N-1) - 1))
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "codec/fp16.hpp"

namespace mikv::codec {

struct GroupScale {
  uint16_t alpha = 0;  ///< half: step between two codes
  uint16_t beta = 0;   ///< half: value of code 0
};

/// The scale and the zero of a group of finite values from `low` to `high`, in `bits` (2..8).
inline GroupScale group_scale(float low, float high, uint32_t bits) {
  const float top = float((1u << bits) - 1);
  return {f32_to_f16(std::min(kF16Max, (high - low) / top)), f32_to_f16(std::clamp(low, -kF16Max, kF16Max))};
}

/// What a group's values are multiplied by to become codes: 1 / alpha, or 0 for a constant group, whose alpha is 0.
inline float inverse_step(float alpha) { return alpha > 0.0f ? 1.0f / alpha : 0.0f; }

/// The code of a value, of those up to `top`: truncated after adding 0.5, which rounds half up.
inline uint8_t code_of(float value, float beta, float inverse, float top) {
  return uint8_t(std::clamp((value - beta) * inverse + 0.5f, 0.0f, top));
}

/// Quantises one group of finite values to `bits` (2..8). codes: as many as values. A constant group gets alpha 0.
inline GroupScale quantise_group(std::span<const float> values, uint32_t bits, uint8_t* codes) {
  // Several minima and maxima side by side: a single chain of comparisons would take as long as all the rest.
  constexpr size_t kChains = 8;
  float lows[kChains], highs[kChains];
  std::fill_n(lows, kChains, values[0]);
  std::fill_n(highs, kChains, values[0]);
  const size_t whole = values.size() / kChains * kChains;
  for (size_t i = 0; i < whole; i += kChains) {
    for (size_t j = 0; j < kChains; ++j) {
      lows[j] = std::min(lows[j], values[i + j]);
      highs[j] = std::max(highs[j], values[i + j]);
    }
  }
  float low = *std::min_element(lows, lows + kChains), high = *std::max_element(highs, highs + kChains);
  for (size_t i = whole; i < values.size(); ++i) low = std::min(low, values[i]), high = std::max(high, values[i]);
  const float top = float((1u << bits) - 1);
  const GroupScale scale = group_scale(low, high, bits);
  const float beta = f16_to_f32(scale.beta), inverse = inverse_step(f16_to_f32(scale.alpha));
  for (size_t i = 0; i < values.size(); ++i) codes[i] = code_of(values[i], beta, inverse, top);
  return scale;
}

/// The code that stands for 0 under a symmetric quantiser of `bits`.
constexpr uint32_t symmetric_zero(uint32_t bits) { return (1u << (bits - 1)) - 1; }

/// Quantises one group of finite values to `bits` (2..8), symmetrically; returns alpha as a half. codes: as many as
/// values, 0 to 2^bits - 2.
inline uint16_t quantise_symmetric(std::span<const float> values, uint32_t bits, uint8_t* codes) {
  float largest = 0.0f;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  const float zero = float(symmetric_zero(bits));
  const uint16_t stored = f32_to_f16(std::min(kF16Max, largest / zero));
  const float alpha = f16_to_f32(stored), inverse = alpha > 0.0f ? 1.0f / alpha : 0.0f;
  for (size_t i = 0; i < values.size(); ++i) {
    const float code = values[i] * inverse + zero + 0.5f;  // truncated below: round half up
    codes[i] = uint8_t(std::clamp(code, 0.0f, 2.0f * zero + 0.5f));
  }
  return stored;
}

}  // namespace mikv::codec
