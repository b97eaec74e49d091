// Expected error: what the codes of keys lose, as far as it is known without the keys.
//
// Levels lie where they are the mean of what they stand for, so a stored key's logit is the true one less an error e
// that does not depend on it, of mean 0 and variance s. The weight exp() of it is then too small by exp(s / 2) on
// average, E exp(e) for a normal e, next to tokens that are stored better. Attention adds s / 2 to the logits of the lo
// tier.
#pragma once

#include <cstdint>

#include "codec/block.hpp"
#include "codec/fp16.hpp"
#include "codec/transform.hpp"
#include "codec/trellis.hpp"

namespace mikv::codec {

/// Mean squared error of each channel of a key in the engine's coordinates, out[layout.dim_k]: rotated coordinates have
/// variance 1 (policy/mixed_calibration.hpp) and, within a turn, the same bits, so that turning back changes nothing.
/// layout.mixed() only.
inline void expected_key_errors(const Axes& key, const BlockLayout& layout, float* out) {
  for (uint32_t i = 0; i < layout.dim_k; ++i) {
    const float balancer = f16_to_f32(key.balancer[key.order[i]]);
    out[key.order[i]] = float(kKeyError[layout.row_k.bits[i / kTileSide]]) / (balancer * balancer);
  }
}

}  // namespace mikv::codec
