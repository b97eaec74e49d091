// Budget: makes room for a step within the account's limit, by giving up as little quality as does.
//
// What can be given up is a table of concessions (budget.cpp), tried in order until the step fits. State is explicit:
// what holds for the present step, and what holds from now on.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "context/layer_set.hpp"
#include "context/sequences.hpp"
#include "context/step_plan.hpp"
#include "mikv/context.hpp"

namespace mikv::context {

struct BudgetState {
  Spec spec;  ///< that text is held under from now on
  /// Of the present step: prompts that have no room in f16 wait for their end in 8 bits ...
  bool staged_in_bytes = false;
  /// ... and prompts are compressed within the step, once they have so many tokens.
  std::optional<uint32_t> pressed_from;
  uint64_t n_lowered = 0;  ///< times that the spec became smaller
  uint64_t n_refused = 0;  ///< steps that did not fit
};

/// Makes the spec one step smaller: fewer tokens in high precision down to 4 %, then fewer bits for the others down to
/// 2, then the last of the share down to 1 %. Below 4 %, at equal bytes, fewer bits cost less
/// (docs/adr/0012-bits-between-heads.md). False at the end.
bool lower(Spec& spec);

/// What a cache of the spec's bits costs in quality, in words: mean KL divergence, docs/quality.md.
const char* cost_of(const Spec& spec);

class Budget {
 public:
  /// Everything is borrowed. continue_full: begins new segments for prompts whose segment has so many tokens.
  struct Scene {
    LayerSet& layers;
    Sequences& sequences;
    StepPlan& plan;
    MemoryAccount& account;
    const ContextOptions& options;
    std::function<void(uint32_t n_tokens)> continue_full;
  };

  explicit Budget(const Spec& spec) { state_.spec = spec; }

  /// Before the step of scene.plan: what it needs is reserved in the account. Error: over_budget; concessions that were
  /// tried stay.
  Status make_room(const Scene& scene);

  const BudgetState& state() const { return state_; }
  void set_spec(const Spec& spec) { state_.spec = spec; }

 private:
  friend class Attempt;
  BudgetState state_;
  uint64_t said_ = 0;  ///< bit i: concession i was logged
  int64_t refused_at_s_ = INT64_MIN / 2;
};

/// Bytes that a step takes at most, beyond what is held: what the tiers grow by, and what is needed for a moment.
uint64_t bytes_of_step(const LayerSet& layers, const StepPlan& plan, const BudgetState& state, uint32_t n_ubatch);

/// Room that compressing what waits now needs for a moment: a segment of a layer at a time.
uint64_t bytes_to_compress(const LayerSet& layers, const Sequences& sequences);

/// How many tokens of a prompt, at most n_most, are staged when a micro-batch ends, and wait for the next. Alone, a
/// prompt is cut every n_ubatch tokens. Others in the batch are cut with it, before it (then its own cuts come earlier
/// by as many), or share micro-batches with it in equal parts (then they come later by as many).
uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch);

}  // namespace mikv::context
