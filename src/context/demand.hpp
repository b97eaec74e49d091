// What a step needs, in bytes, before it is let in. The bytes themselves come from LayerCache::growth.
#pragma once

#include <cstdint>
#include <optional>

#include "context/layer_set.hpp"
#include "context/sequences.hpp"
#include "context/step_plan.hpp"
#include "mikv/spec.hpp"
#include "policy/ladder.hpp"

namespace mikv::context {

/// What presses on a step.
struct Pressure {
  const Spec& spec;  ///< as it was asked for
  /// Prompts are compressed from this many tokens on.
  std::optional<uint32_t> pressed_from;
  const policy::Rung* rung = nullptr;  ///< as if all segments had been lowered to it; null: as they are
  bool committed = false;              ///< as if what waits in the step's segments had been compressed before
};

/// Most bytes that a step adds to what is held: growth of the tiers, and transient memory.
uint64_t bytes_of_step(const LayerSet& layers, const StepPlan& plan, const Pressure& pressure, uint32_t n_ubatch);

/// Transient bytes to compress all staged tokens: one segment of one layer at a time.
uint64_t bytes_to_compress(const LayerSet& layers, const Sequences& sequences, const policy::Rung* rung = nullptr);

/// Most tokens of a prompt, up to n_most, that are staged when a micro-batch ends and wait for the next. Alone, a
/// prompt is cut every n_ubatch tokens. n_others tokens in the batch before it make the cuts earlier by as many; if
/// they share micro-batches with it in equal parts, cuts come later by as many.
uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch);

}  // namespace mikv::context
