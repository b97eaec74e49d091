// Bit allocation: how many bits each tile of a head gets, so that a given total does least harm.
//
// Rate-distortion theory gives a channel bits by the logarithm of its variance ("reverse water-filling", Cover and
// Thomas, section 10.3.3). Channels, sorted by importance, are cut into tiles of 16; all of a tile have the same bits,
// 1 to 4 or 6. Harm is counted as error of what attention computes: of keys, the variance of the logit's error; of
// values, the error relative to the variance of the head's values, times kValueHarm.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/trellis.hpp"

namespace mikv::policy {

/// Logit variance (nats squared) that does as much harm as losing a value's variance altogether. Measured as the best
/// of 0.8, 1.5 and 3 on SmolLM2-135M and Qwen2.5-Coder-0.5B (docs/adr/0008-mixed-bits.md).
inline constexpr double kValueHarm = 1.5;
inline constexpr uint32_t kMinTileBits = 1;
using codec::kMaxTileBits;

struct TileBits {
  std::vector<uint8_t> k, v;  ///< of each tile
};

/// harm_k, harm_v: harm of losing a tile altogether. total: bits of all tiles together, clamped to 1 to 6 per tile. One
/// bit is left over where all tiles have 4, because the next step takes two.
/// Greedy: each bit goes where it removes most harm. That is optimal, because each further bit of a tile removes less
/// than the one before.
TileBits allocate_bits(std::span<const double> harm_k, std::span<const double> harm_v, uint32_t total);

/// Most bits per code that share_bits() gives a head above or below the average: weights are estimates.
inline constexpr double kMostMoreBits = 2.0;

/// Bits of each head's n_tiles tiles together: `each` per head on average, the sum over heads rounded down. A head
/// whose errors count w times as much (ErrorWeight, relative to the output of its layer) gets up to 0.35 log2(w) more
/// bits per code. Theory says 0.5 for exactly known weights; 0.35 is the best of 0.25, 0.35 and 0.5 on SmolLM2-135M and
/// Qwen2.5-Coder-0.5B (docs/adr/0012-bits-between-heads.md).
std::vector<uint32_t> share_bits(std::span<const double> weights, double each, uint32_t n_tiles);

}  // namespace mikv::policy
