// A saved segment, read by the description in src/layer/segment_format.hpp and by nothing of the library: what a head's
// tiers are made of, and where the parts stand.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layer/layer_cache.hpp"

namespace mikv::test {

/// The coordinates of a tier, in double precision.
struct SavedAxes {
  std::vector<double> centre, balancer;
  std::vector<uint16_t> order, turns;
  bool hadamard = false;

  /// Tiers hold what they are given, but for rounding to their format.
  bool trivial() const { return centre.empty() && balancer.empty() && order.empty() && turns.empty() && !hadamard; }
  std::vector<double> to_tier(std::span<const float> x) const;
  /// Most that single precision may be off by, in any coordinate: of x in a tier, or of x read back and transformed
  /// again.
  double rounding(std::span<const float> x) const;
};

/// Bytes [begin, end) of the file.
struct SavedRange {
  size_t begin = 0, end = 0;
};

struct SavedHead {
  Spec spec;  ///< that the segment is held as
  bool frozen = false, sampled = false, continues = false, in_bytes = false;
  SavedAxes staged_key;  ///< of staged tokens in bytes
  std::vector<float> q_max;
  std::vector<uint32_t> sample_arrivals;
  SavedRange arrivals, queries;  ///< the two arrays of the sample, their lengths included
  SavedAxes key, value;
  std::vector<uint8_t> bits_k, bits_v;  ///< by tile; empty unless bits are mixed and the segment is frozen
  std::vector<float> weights_k, weights_v;
  uint32_t n_staged = 0, n_hi = 0, n_lo = 0;
};

struct SavedSegment {
  uint32_t next_arrival = 0;
  std::vector<uint64_t> live;
  std::vector<SavedHead> heads;
};

/// Channels of K, and of V, that hi and lo hold as halves, before the others.
constexpr uint32_t n_outlier_channels(const Spec& spec) { return spec.outlier_channels ? 16 : 0; }

/// Throws std::runtime_error if there are too few bytes, or too many. Cell numbers have id_bytes.
SavedSegment read_saved_segment(std::span<const uint8_t> bytes, uint32_t n_cells, const LayerShape& shape,
                                const Spec& spec, uint32_t id_bytes);

}  // namespace mikv::test
