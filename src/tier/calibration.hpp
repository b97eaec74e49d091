// Calibration: what the first commit of a segment computes from a head's staged tokens, and freezes.
#pragma once

#include <memory>

#include "codec/block.hpp"
#include "codec/transform.hpp"
#include "mikv/spec.hpp"
#include "policy/mixed_calibration.hpp"
#include "tier/commit_scratch.hpp"

namespace mikv::tier {

class HeadStore;

struct Calibration {
  codec::Transform transform;              ///< of hi and lo
  std::unique_ptr<codec::BlockLayout> lo;  ///< of the head's own bits; null: the layer's
};

/// Centres, balancers, orders of channels, and with lo=mixed the bits of tiles. May throw std::bad_alloc.
Calibration plan_calibration(const HeadStore& head, const Spec& spec, CommitScratch& scratch);

/// Of the staged tokens and the queries so far. May throw std::bad_alloc.
policy::Moments staged_moments(const HeadStore& head, CommitScratch& scratch);

}  // namespace mikv::tier
