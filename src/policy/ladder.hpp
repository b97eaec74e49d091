// Ladder: how a cache is made smaller, a rung at a time, where a budget has no room for it as it was asked for.
//
// lo=mixed goes down the measured frontier: the share in high precision and the bits of the rest that together lose
// least at their size (docs/quality.md, docs/results/ladder.csv). Other specs give up their share, then their format.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "mikv/spec.hpp"

namespace mikv::policy {

/// The most that a segment may hold.
struct Rung {
  double keep = 1.0;   ///< share of the tokens in the hi tier
  double bits = 16.0;  ///< bits per element of the lo tier

  bool operator==(const Rung&) const = default;
};

/// A cache of lo=mixed as it was measured: mean KL divergence to the full cache, the least and the most of three models
/// at 1,024 tokens.
struct MeasuredRung {
  Rung rung;
  double least_kld, most_kld;
};

/// From the largest to the smallest.
std::span<const MeasuredRung> measured_rungs();

/// The rungs below `asked`, from the largest to the smallest; none if the spec has nothing to give up.
std::vector<Rung> ladder_of(const Spec& asked);

/// `spec` with no more than the rung has. A uniform lo format becomes the largest one of no more bits.
Spec lowered(Spec spec, const Rung& rung);

/// What a spec loses in quality, in words, by the measured rungs next to it.
std::string cost_of(const Spec& spec);

}  // namespace mikv::policy
