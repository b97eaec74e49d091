// residual: keeps the most recent tokens, as many as the spec key `residual` says and up to 15 more; the oldest go
// first, as in a window. Source: the residual of KIVI, arXiv 2402.02750, of keys and values alike.
//
// Tokens leave hi by blocks: a lo tier whose keys have scales by channel (keys=channel) encodes 16 tokens together, and
// a block that is filled at once is encoded once. A number, not a share of the tokens: `keep` is not read.
//
// Records nothing; the score is the arrival. Cost: O(n) per choice.
#pragma once

#include "codec/block.hpp"
#include "policy/policy.hpp"
#include "policy/window.hpp"

namespace mikv::policy {

namespace residual {

/// All tokens, until there are enough for a block beside the residual; what then goes is whole blocks.
inline Places places(const Spec& spec, uint64_t n_live) {
  const uint64_t n = spec.residual;
  const uint64_t total = n_live < n ? n_live : n + (n_live - n) % codec::kBlockTokens;
  return {total, total};
}

}  // namespace residual

inline constexpr Policy kResidual{
    .importance = Importance::residual,
    .name = "residual",
    .own_keys = "residual",
    .recording = {},
    .settle = nullptr,
    .choose = choose_window,
    .places = residual::places,
    .fewer_places = codec::kBlockTokens - 1,
    .preset_keys = "importance=residual,residual=128,hi=f16,lo=evict,outlier=none",
    .description = "the most recent 128; the rest is lost",
};

}  // namespace mikv::policy
