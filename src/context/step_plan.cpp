#include "context/step_plan.hpp"

#include <algorithm>
#include <map>
#include <string>

#include "context/commit_rules.hpp"

namespace mikv::context {
namespace {

// Where nothing was read before, more tokens with logits than a draft has are a text to be measured.
constexpr uint32_t kMaxFirstDraft = 64;

// The tokens of a sequence in a batch.
struct Tally {
  uint32_t n = 0, n_outputs = 0;
  bool last_output = false;
  bool generates = false, measured = false;  // see StepPlan::Run
};

void judge(Tally& tally, Reading before) {
  const bool all_outputs = tally.n == tally.n_outputs;
  const bool draft =
      all_outputs && (before == Reading::ended || (before == Reading::nothing && tally.n <= kMaxFirstDraft));
  tally.generates = tally.n == 1 || draft;
  tally.measured = !tally.generates && tally.n_outputs > 1;
}

bool share_a_segment(const std::vector<SegmentId>& a, const std::vector<SegmentId>& b) {
  return std::any_of(a.begin(), a.end(), [&](SegmentId f) { return std::find(b.begin(), b.end(), f) != b.end(); });
}

void add_segments(std::vector<SegmentId>& to, std::span<const SegmentId> more) {
  for (const SegmentId segment : more) {
    if (std::find(to.begin(), to.end(), segment) == to.end()) to.push_back(segment);
  }
}

}  // namespace

Result<StepPlan> StepPlan::make(const Batch& batch, Sequences& sequences, bool in_order) {
  if (!sequences.unified() && !batch.shared.empty())
    return Error{"tokens of several sequences need a unified context; give each sequence a token of its own"};
  std::map<SequenceId, Tally> tallies;
  for (const Batch::Token& token : batch.tokens) {
    if (!sequences.valid(token.sequence)) {
      return no_sequence(token.sequence, sequences.n_sequences());
    }
    Tally& tally = tallies[token.sequence];
    ++tally.n;
    tally.n_outputs += token.output;
    tally.last_output = token.output;
  }
  for (auto& [sequence, tally] : tallies) {
    judge(tally, sequences.reading(sequence));
    sequences.set_reading(sequence, tally.measured                         ? Reading::measured
                                    : tally.generates || tally.last_output ? Reading::ended
                                                                           : Reading::prompt);
  }
  StepPlan plan;
  const bool mixed_up = sequences.unified() && !in_order && tallies.size() > 1;
  for (uint32_t i = 0; i < batch.tokens.size(); ++i) {
    const SequenceId sequence = mixed_up ? 0 : batch.tokens[i].sequence;
    if (!plan.runs_.empty() && plan.runs_.back().sequence == sequence) {
      ++plan.runs_.back().n;
      continue;
    }
    Run run;
    run.first = i;
    run.n = 1;
    run.sequence = sequence;
    run.segment = sequences.segment_for_tokens(sequence);
    if (run.segment == kMaxSegments) return Error{"too many sequences share parts of the cache; use fewer"};
    const Tally& tally = tallies[batch.tokens[i].sequence];
    run.single = tally.n == 1;
    run.may_end = tally.last_output;
    run.generates = tally.generates;
    run.measured = tally.measured;
    if (run.measured) run.n_streamed = kFirstStreamedTokens;
    plan.runs_.push_back(run);
  }
  if (mixed_up) {
    plan.runs_.front().single = false;
    for (const auto& [sequence, tally] : tallies) {
      plan.runs_.front().generates &= tally.n == 1;
      plan.shared_.emplace_back(0, sequence);
    }
  }
  for (const auto& [token, sequence] : batch.shared) {
    if (token >= batch.tokens.size())
      return Error{"token " + std::to_string(token) + " is shared but not in the batch"};
    if (!sequences.valid(sequence)) return no_sequence(sequence, sequences.n_sequences());
    if (!mixed_up) plan.shared_.emplace_back(batch.tokens[token].sequence, sequence);
  }
  plan.share(sequences);
  return plan;
}

std::vector<StepPlan::Move> StepPlan::move_on(Sequences& sequences, const std::function<bool(SegmentId)>& is_full) {
  std::map<SegmentId, uint32_t> n_tokens;
  for (const Run& run : runs_) n_tokens[run.segment] += run.n;
  std::vector<Move> moves;
  for (const auto& [segment, n] : n_tokens) {
    if (n < kFirstTokens || !is_full(segment)) continue;
    const auto in_segment = [segment = segment](const Run& run) { return run.segment == segment; };
    const SegmentId next = sequences.new_segment(std::ranges::find_if(runs_, in_segment)->sequence, true);
    if (next == kMaxSegments) break;
    for (Run& run : runs_) {
      if (in_segment(run)) run.segment = next;
    }
    moves.push_back({segment, next});
  }
  if (!moves.empty()) share(sequences);
  return moves;
}

void StepPlan::let_wait(const std::function<uint32_t(SequenceId)>& n_streamed) {
  for (Run& run : runs_) {
    if (!run.generates) run.n_streamed = n_streamed(run.sequence);
  }
}

void StepPlan::share(Sequences& sequences) {
  for (const auto& [from, to] : shared_) sequences.share(from, to);
  if (sequences.unified()) find_sets(sequences);
}

// Segments that several sequences see are attended in one call: two calls must not touch the same segment. A call takes
// rows that stand together; where they do not, one call takes all.
void StepPlan::find_sets(const Sequences& sequences) {
  sets_.clear();
  for (Run& run : runs_) {
    std::vector<SegmentId> segments{run.segment};
    add_segments(segments, sequences.seen_by(run.sequence));
    run.set = uint32_t(sets_.size());
    for (uint32_t g = 0; g < sets_.size(); ++g) {
      if (!share_a_segment(sets_[g], segments)) continue;
      add_segments(segments, sets_[g]);
      sets_[g].clear();
      for (Run& other : runs_) {
        if (&other < &run && other.set == g) other.set = run.set;
      }
    }
    sets_.push_back(std::move(segments));
  }
  bool together = true;
  for (size_t i = 1; i < runs_.size(); ++i) {
    if (runs_[i].set == runs_[i - 1].set) continue;
    for (size_t j = 0; j < i; ++j) together &= runs_[j].set != runs_[i].set;
  }
  if (together) return;
  std::vector<SegmentId> all;
  for (const auto& segments : sets_) add_segments(all, segments);
  sets_.assign(1, std::move(all));
  for (Run& run : runs_) run.set = 0;
}

uint32_t StepPlan::n_tokens() const {
  uint32_t n = 0;
  for (const Run& run : runs_) n += run.n;
  return n;
}

const StepPlan::Run* StepPlan::run_of(SequenceId sequence) const {
  for (const Run& run : runs_) {
    if (run.sequence == sequence) return &run;
  }
  return nullptr;
}

}  // namespace mikv::context
