// Quantiser, Eq. 1 of MiKV (arXiv 2402.18096): asymmetric, round to nearest, one scale and one zero a group.
//   alpha = (max - min) / (2^N - 1), beta = min, code = round((x - beta) / alpha), x' = alpha * code + beta
// alpha and beta are stored as halves; codes are taken against the stored values, so their rounding costs no extra error
// except at the ends of the range.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "codec/fp16.hpp"
#include "codec/levels.hpp"
#include "codec/scale8.hpp"
#include "codec/tile.hpp"

namespace mikv::codec {

struct GroupScale {
  uint16_t alpha = 0;  ///< half: step between two codes
  uint16_t beta = 0;   ///< half: value of code 0
};

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
  const GroupScale scale{f32_to_f16(std::min(kF16Max, (high - low) / top)), f32_to_f16(std::clamp(low, -kF16Max, kF16Max))};
  const float alpha = f16_to_f32(scale.alpha), beta = f16_to_f32(scale.beta);
  const float inverse = alpha > 0.0f ? 1.0f / alpha : 0.0f;
  for (size_t i = 0; i < values.size(); ++i) {
    const float code = (values[i] - beta) * inverse + 0.5f;  // truncated below: round half up
    codes[i] = uint8_t(std::clamp(code, 0.0f, top));
  }
  return scale;
}

// ---------------------------------------------------------------- symmetric, tiles of different bits

/// Nearest gaussian level of 16 values: codes[16], and the levels less their centre, levels[16]. inverse: 1 / alpha.
template <uint32_t kBits>
inline void nearest_gaussian(const float* values, float inverse, uint8_t* codes, float* levels) {
  constexpr Levels table = make_levels(kBits, Codebook::gaussian);
  float level[kTileSide];
  uint32_t code[kTileSide] = {};
  std::fill_n(level, kTileSide, float(table[0]) - kGaussianCentre);
  for (uint32_t c = 0; c + 1 < 1u << kBits; ++c) {
    const float border = 0.5f * float(table[c] + table[c + 1]) - kGaussianCentre, step = float(table[c + 1] - table[c]);
    for (uint32_t i = 0; i < kTileSide; ++i) {
      const bool above = values[i] * inverse >= border;
      code[i] += above;
      level[i] += above ? step : 0.0f;
    }
  }
  for (uint32_t i = 0; i < kTileSide; ++i) codes[i] = uint8_t(code[i]), levels[i] = level[i];
}

/// Quantises a head's part of a token to gaussian levels under one scale, x' = alpha (level - 127.5), tile t with bits[t] (1..4).
/// The scale starts as the root mean square and is made the least-squares one for its codes, weights[t] an element, twice.
/// values[n_tiles * 16], 0 beyond the head's channels; codes: as many. Returns the scale as a byte (codec/scale8.hpp).
inline uint8_t quantise_gaussian(const float* values, const uint8_t* bits, const float* weights, uint32_t n_tiles,
                                 uint8_t* codes) {
  const auto visit_tiles = [&](float alpha, auto visit) {
    const float inverse = 1.0f / alpha;
    for (uint32_t t = 0; t < n_tiles; ++t) {
      const float* x = values + t * kTileSide;
      uint8_t* code = codes + t * kTileSide;
      float levels[kTileSide];
      switch (bits[t]) {
        case 1: nearest_gaussian<1>(x, inverse, code, levels); break;
        case 2: nearest_gaussian<2>(x, inverse, code, levels); break;
        case 3: nearest_gaussian<3>(x, inverse, code, levels); break;
        default: nearest_gaussian<4>(x, inverse, code, levels); break;
      }
      visit(t, x, levels);
    }
  };
  float squares = 0.0f, sum_of_weights = 0.0f;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < kTileSide; ++i) sum += values[t * kTileSide + i] * values[t * kTileSide + i];
    squares += weights[t] * sum;
    sum_of_weights += weights[t] * float(kTileSide);
  }
  uint8_t scale = scale8_from_f32(kGaussianUnit * std::sqrt(squares / sum_of_weights));
  for (int round = 0; round < 2; ++round) {
    float projected = 0.0f, level_squares = 0.0f;
    visit_tiles(scale8_to_f32(scale), [&](uint32_t t, const float* x, const float* levels) {
      float dot = 0.0f, square = 0.0f;
      for (uint32_t i = 0; i < kTileSide; ++i) dot += x[i] * levels[i], square += levels[i] * levels[i];
      projected += weights[t] * dot;
      level_squares += weights[t] * square;
    });
    scale = scale8_from_f32(projected / level_squares);  // no level is 0
  }
  visit_tiles(scale8_to_f32(scale), [](uint32_t, const float*, const float*) {});
  return scale;
}

}  // namespace mikv::codec
