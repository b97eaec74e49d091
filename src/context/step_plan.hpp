// StepPlan: which segment each token of a batch goes to, and which segments are attended together.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "context/sequences.hpp"
#include "mikv/result.hpp"

namespace mikv::context {

class StepPlan {
 public:
  /// Consecutive tokens of the batch of one sequence.
  struct Run {
    uint32_t first = 0, n = 0;
    SequenceId sequence = 0;
    SegmentId segment = 0;
    uint32_t set = 0;  ///< that it attends to: index of segments_of_set()
    /// The prompt is over: every token of the sequence in the batch wants logits. More than one is a draft, part of
    /// which may be taken back.
    bool generates = false;
    /// A text whose probabilities are measured (perplexity): several tokens want logits, and no prompt ended before.
    bool measured = false;
    bool single = false;  ///< one token of its sequence
    /// streamed_tokens() of the sequence when the step begins, or kFirstStreamedTokens of a text that is measured.
    uint32_t n_streamed = 0;
    bool may_end = false;  ///< the sequence's last token in the batch wants logits: a prompt may end here
  };

  StepPlan() = default;
  /// Makes segments in `sequences` where needed. in_order: the tokens of a unified context are stored in the order of
  /// the batch; if not (hybrid models), they cannot be told apart and share the segment of sequence 0. Errors: no free
  /// segment; a sequence out of range.
  static Result<StepPlan> make(const Batch& batch, Sequences& sequences, bool in_order);

  struct Move {
    SegmentId from, to;
  };
  /// Moves prompts, or pieces of one, of kFirstTokens or more to a new segment if is_full(theirs) and one is free.
  std::vector<Move> move_on(Sequences& sequences, const std::function<bool(SegmentId)>& is_full);

  /// Sets Run::n_streamed of the runs that are parts of a prompt.
  void let_wait(const std::function<uint32_t(SequenceId)>& n_streamed);

  /// In the order of the batch.
  std::span<const Run> runs() const { return runs_; }
  uint32_t n_tokens() const;
  /// In a context with a stream per sequence; null if the batch has no token of it.
  const Run* run_of(SequenceId sequence) const;
  const std::vector<SegmentId>& segments_of_set(uint32_t set) const { return sets_[set]; }

 private:
  void share(Sequences& sequences);
  void find_sets(const Sequences& sequences);

  std::vector<Run> runs_;
  std::vector<std::pair<SequenceId, SequenceId>> shared_;  ///< the second sees what the first has
  std::vector<std::vector<SegmentId>> sets_;
};

}  // namespace mikv::context
