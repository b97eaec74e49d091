// Layouts: the formats of the tiers of a layer's heads under a spec, and where its tokens may be.
#pragma once

#include <cstdint>

#include "codec/block.hpp"
#include "codec/transform.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"

namespace mikv::tier {

/// Where tokens of a layer may be.
struct Positions {
  Rope rope;                       ///< no angles: not known
  uint32_t max_cells = kMaxCells;  ///< cells are smaller; also the most tokens of a context
  /// Queries are recorded from a segment's so many tokens on: before, statistics would be larger than what they help
  /// to compress.
  uint32_t record_from = 0;
};

/// Layouts of the tiers under a spec.
struct Layouts {
  codec::BlockLayout staged, hi, lo;
  codec::BlockLayout staged_bytes;       ///< of staged tokens under a budget (HeadStore::stage_in_bytes)
  bool evict = false;                    ///< no lo tier: demoted tokens are lost
  uint32_t group = 1;                    ///< query heads of a KV head
  const Positions* positions = nullptr;  ///< of the layer; outlives its heads
  codec::KeyBalancers balancers;         ///< of keys in hi and lo, measured beforehand; or empty

  /// True if a tier holds codes, not halves.
  bool quantised() const { return hi.bits < 16 || (!evict && lo.bits < 16); }
};

}  // namespace mikv::tier
