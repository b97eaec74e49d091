// Budget: makes room for a step within the memory accounts' limits, by a table of concessions.
//
// A concession belongs to the segments that it is made for: each keeps how it is held (LayerCache::spec_of), and what
// comes later is held as it was asked for, as soon as there is room. What cannot fit even after the last concession is
// refused before the first: it costs nobody anything.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "context/layer_set.hpp"
#include "context/sequences.hpp"
#include "context/step_plan.hpp"
#include "mikv/context.hpp"
#include "policy/ladder.hpp"

namespace mikv::context {

class Budget {
 public:
  /// Everything is borrowed. continue_full: begins new segments for prompts whose segment has n_tokens, n_most of them.
  struct Scene {
    LayerSet& layers;
    Sequences& sequences;
    StepPlan& plan;
    MemoryAccount& account;
    const ContextOptions& options;
    std::function<void(uint32_t n_tokens, uint64_t n_most)> continue_full;
  };

  /// Reserves in the account what the step of scene.plan needs, after concessions if they are necessary.
  /// Errors: over_budget. Concessions were made only if they were taken to be enough.
  Status make_room(const Scene& scene);

  /// Reserves what is about to be copied or loaded between steps. bytes_at: its size once lowered to a rung, or as it
  /// is; lower: lowers what is not in the cache yet. Errors: over_budget, as above.
  Status make_room_for(const Scene& scene, const std::function<uint64_t(const policy::Rung*)>& bytes_at,
                       const std::function<void(const policy::Rung&)>& lower);

  /// The sequence begins anew: an earlier prompt of it that was refused says nothing about the next.
  void forget_refusal(SequenceId sequence);

  /// Of the present step: prompts are compressed from this many tokens on.
  std::optional<uint32_t> pressed_from() const { return pressed_from_; }
  uint64_t n_lowered() const { return n_lowered_; }  ///< times that segments were lowered
  uint64_t n_refused() const { return n_refused_; }  ///< steps, copies and loads

 private:
  friend class Attempt;
  void log_line(const Scene& scene, const std::string& line);
  void log_lowered(const Scene& scene, const policy::Rung& rung, bool all, const char* name);
  Status refuse(const Scene& scene, const std::string& what);
  /// Begins a search: frees what was reserved before, and notes the limit. False if there is none.
  bool begin(const Scene& scene);
  bool was_refused(const StepPlan& plan) const;
  void remember_refused(const StepPlan& plan);

  std::optional<uint32_t> pressed_from_;
  uint64_t n_lowered_ = 0, n_refused_ = 0;
  uint64_t limit_ = 0;  ///< of the present search, for messages
  uint64_t said_ = 0;   ///< bit i: concession i was logged
  int64_t refused_at_s_ = INT64_MIN / 2, lowered_at_s_ = INT64_MIN / 2;
  /// Prompts that could not fit. A program that is refused tries again with a part: the rest would not fit either, so
  /// that nothing is lowered for it.
  std::vector<SequenceId> refused_;
};

}  // namespace mikv::context
