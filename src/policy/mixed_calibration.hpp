// Mixed calibration: coordinates and bits of a head whose lo tier has tiles of different bits (lo=mixed), from the
// second moments of its prompt.
//
// With an error of equal variance in all channels of b k, the logit's error is least where b^2 = rms(q) / rms(k) for
// each channel: Eq. 2 of MiKV with root mean squares in place of maxima. Both q / b and b k then have the variance
// rms(q) rms(k), a channel's importance. Channels are sorted by it, so that tiles of 16 differ as much as can be, and
// tiles get bits by it (policy/bit_allocation.hpp). Runs of tiles of equal bits are rotated, which makes them normally
// distributed, what the levels are made for, and brought to variance 1, so that all tiles share a token's one scale.
// Values likewise, with rms(q) = 1 and their mean subtracted.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/block.hpp"
#include "codec/transform.hpp"

namespace mikv::policy {

/// Over the prompt's tokens, each [dim]: means, and means of squares before anything is subtracted.
struct Moments {
  std::vector<double> k_mean, k_square, v_mean, v_square;
  std::vector<double> q_square;  ///< of queries times the softmax scale; empty or all 0 if none was seen
};

struct MixedCalibration {
  codec::Transform transform;
  codec::BlockLayout lo;
};

/// bits: per element of a full block, mean of K and V, scales and ids of id_bytes included; rounded down to what tiles
/// of 1 to 4 and 6 bits can meet, or up to 1 bit per tile.
MixedCalibration plan_mixed_calibration(const Moments& moments, double bits, uint32_t id_bytes);

/// Bits of all tiles of a head together, if `bits` per element include scales and ids, for dim_k + dim_v channels; and
/// its inverse.
double total_tile_bits(size_t n_channels, double bits, uint32_t id_bytes);
double bits_of_total(size_t n_channels, uint32_t total, uint32_t id_bytes);

/// Least bits per element, counted so, that tiles can meet: one bit in each.
double least_bits(uint32_t dim_k, uint32_t dim_v, uint32_t id_bytes);

/// The same tiles with fewer bits, `bits` counted as above. The balance between K and V stays as planned.
codec::BlockLayout lower_bits(const codec::BlockLayout& lo, double bits);

}  // namespace mikv::policy
