// Budget: makes room for a step within the account's limit, at the least cost in quality.
//
// A table of concessions (budget.cpp) is tried in order until the step fits. State is explicit: what holds for the
// present step, and what holds from now on.
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
  Spec spec;  ///< of all text from now on; only ever lowered, except by set_spec()
  /// In the present step, prompts are compressed from this many tokens on.
  std::optional<uint32_t> pressed_from;
  uint64_t n_lowered = 0;  ///< times that the spec was lowered
  uint64_t n_refused = 0;  ///< steps refused
};

/// Makes the spec one step smaller: fewer tokens in high precision down to 4 %, then fewer bits for the others down to
/// 2, then the last of the share down to 1 %. Below 4 %, at equal bytes, fewer bits cost less
/// (docs/adr/0012-bits-between-heads.md). False at the end.
bool lower(Spec& spec);

/// Mean KL divergence of a cache of the spec's bits, in words: docs/quality.md.
const char* cost_of(const Spec& spec);

class Budget {
 public:
  /// Everything is borrowed. continue_full: begins new segments for prompts whose segment has n_tokens.
  struct Scene {
    LayerSet& layers;
    Sequences& sequences;
    StepPlan& plan;
    MemoryAccount& account;
    const ContextOptions& options;
    std::function<void(uint32_t n_tokens)> continue_full;
  };

  explicit Budget(const Spec& spec) { state_.spec = spec; }

  /// Reserves in the account what the step of scene.plan needs, after concessions if they are necessary.
  /// Errors: over_budget; concessions that were tried stay.
  Status make_room(const Scene& scene);

  const BudgetState& state() const { return state_; }
  void set_spec(const Spec& spec) { state_.spec = spec; }

 private:
  friend class Attempt;
  BudgetState state_;
  uint64_t said_ = 0;  ///< bit i: concession i was logged
  int64_t refused_at_s_ = INT64_MIN / 2;
};

/// Most bytes that a step adds to what is held: growth of the tiers, and what is needed for a moment.
uint64_t bytes_of_step(const LayerSet& layers, const StepPlan& plan, const BudgetState& state, uint32_t n_ubatch);

/// Bytes that compressing what waits now needs for a moment: one segment of one layer at a time.
uint64_t bytes_to_compress(const LayerSet& layers, const Sequences& sequences);

/// Most tokens of a prompt, up to n_most, that are staged when a micro-batch ends and wait for the next. Alone, a
/// prompt is cut every n_ubatch tokens. n_others tokens in the batch before it make the cuts earlier by as many; if
/// they share micro-batches with it in equal parts, cuts come later by as many.
uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch);

}  // namespace mikv::context
