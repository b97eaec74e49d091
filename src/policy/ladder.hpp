// Ladder: how a cache is made smaller, a rung at a time, where a budget has no room for it as it was asked for.
//
// lo=mixed first gives up three eighths of the share in high precision, then bits, by those of the measured frontier
// (docs/quality.md, docs/results/ladder.csv). Other specs give up their share, then their format.
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

/// How many of its first rungs take tokens from hi only, and leave it three fifths of its share or more.
size_t n_share_rungs(const Spec& asked, std::span<const Rung> ladder);

/// `spec` with no more than the rung has. A uniform lo format becomes the largest one of no more bits.
Spec lowered(Spec spec, const Rung& rung);

/// What a spec loses in quality, in words, by the measured rungs next to it.
std::string cost_of(const Spec& spec);

}  // namespace mikv::policy
