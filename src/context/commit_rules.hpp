// Commit rules: which tokens attention compresses in a step, and where a long prompt begins another segment. Pure
// functions of counts, so that the context, its budget and `mikv estimate` decide alike. docs/architecture.md lists all
// moments at which something is compressed.
#pragma once

#include <cstdint>
#include <optional>

#include "context/step_plan.hpp"
#include "mikv/spec.hpp"
#include "tier/head_store.hpp"

namespace mikv::context {

using tier::kFirstTokens;

/// Queries are recorded from this many tokens of a segment on: the last 64 before its first compression matter most,
/// and their statistics take as much as 30 tokens in f16.
inline constexpr uint32_t kRecordFrom = kFirstTokens - 32;

/// The same for a prompt that is compressed while it is read. Measured at 2,048 tokens: KL divergence 1.04 times that
/// of exact prefill; with 256 tokens it is 1.8 times (docs/adr/0014-segments-of-a-long-prompt.md).
inline constexpr uint32_t kFirstStreamedTokens = 1024;

/// Waiting and compressed tokens of a streamed prompt together take at most the memory of this many tokens in f16.
inline constexpr uint32_t kStreamedTokens = 3584;

/// Steps over which prefill=spread weighs the errors of a prompt's heads, and those over which it then compresses the
/// prompt, layer after layer (docs/adr/0023-compression-over-steps.md).
inline constexpr uint32_t kWeighSteps = 64, kCompressSteps = 64;

/// How many of n_staged tokens of a layer a step compresses that has n_left tokens to compress: what stays is none, or
/// enough to wait for another step.
inline uint64_t share_of_layer(uint64_t n_staged, uint64_t n_left) {
  return n_staged < n_left + kFirstTokens ? n_staged : n_left;
}

using tier::kSegmentTokens;

/// Number of tokens of a streamed prompt that may wait in f16 when n_compressed are compressed: both together take at
/// most kStreamedTokens in f16, or half of a context of max_cells. At least kFirstStreamedTokens.
uint32_t streamed_tokens(const Spec& spec, uint64_t max_cells, uint64_t n_compressed);

/// Tokens of a segment in one layer.
struct SegmentCount {
  uint64_t n_cells = 0;   ///< all
  uint64_t n_staged = 0;  ///< not compressed yet

  bool compressed() const { return n_cells > n_staged; }
};

/// True if what follows these tokens belongs in another segment: there are n_tokens or more, some compressed, under a
/// spec whose segments have coordinates of their own (docs/adr/0014-segments-of-a-long-prompt.md).
bool is_full(const Spec& spec, SegmentCount count, uint32_t n_tokens = kSegmentTokens);

/// True if a commit that waits for `from` tokens compresses the segment once n_to_come more are staged.
bool is_ready(uint32_t from, SegmentCount count, uint32_t n_to_come = 0);

/// What the step does with the tokens of a run.
struct CommitRule {
  bool commits = false;  ///< attention compresses them at once
  uint32_t from = 0;     ///< if this many of the segment are staged, or some are compressed
};

/// A generated token is compressed at once. A draft is not: part of it may be taken back. A prompt is if it is
/// streamed, measured (else perplexity would not read what is compressed), or the budget presses. pressed_from: see
/// Budget.
CommitRule rule_of(const Spec& spec, const StepPlan::Run& run, std::optional<uint32_t> pressed_from);

/// n_tokens, or fewer where the budget presses.
inline uint32_t pressed(uint32_t n_tokens, std::optional<uint32_t> pressed_from) {
  return pressed_from ? std::min(n_tokens, *pressed_from) : n_tokens;
}

}  // namespace mikv::context
