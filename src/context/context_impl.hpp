// The parts of a Context. Internal; the library's tests read it too.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

#include "context/balancer_file.hpp"
#include "context/budget.hpp"
#include "context/cell_table.hpp"
#include "context/layer_set.hpp"
#include "context/refusals.hpp"
#include "context/sequences.hpp"
#include "context/step_plan.hpp"
#include "context/step_punctuation.hpp"
#include "mikv/context.hpp"
#include "mikv/thread_team.hpp"

namespace mikv {

namespace context {

// Errors that calls of several files give.
Error no_layer(int layer);
Error no_second_half(int layer);
Error out_of_memory() noexcept;

/// What `call` returns, a Status or a Result; an error where memory or threads run out.
template <typename Call>
std::invoke_result_t<Call> guarded(Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::system_error&) {
    return Error::out_of_memory("the system gives no more threads; use fewer (n_threads)");
  }
}

}  // namespace context

struct Context::Impl {
  explicit Impl(ContextOptions given);

  ContextOptions options;
  std::shared_ptr<MemoryAccount> account;
  context::CellTable own_cells;  ///< used unless the engine keeps the table
  CellOwner* owner;
  context::Sequences sequences;
  context::LayerSet layers;
  context::Budget budget;
  context::StepPlan plan;
  Workspace workspace;
  Figures figures;
  context::Refusals refusals;
  context::BalancerFile balancer_file;

  bool cells_freed = false;               ///< cells may have been freed: forget_freed_cells()
  std::vector<SegmentId> may_have_ended;  ///< of the last step, see StepPlan::Run::may_end
  uint32_t n_since_window = 0;            ///< tokens since cells beyond windows were forgotten
  std::vector<Status> incomplete;         ///< by sequence: why it must not be attended to

  bool keeps_cells() const { return owner == &own_cells; }
  const Spec& spec() const { return options.spec; }
  std::optional<uint32_t> pressed_from() const { return budget.pressed_from(); }
  context::Budget::Scene scene(context::StepPlan& of) {
    const auto move_on = [this](uint32_t n_tokens, uint64_t n_most) { continue_full(n_tokens, n_most); };
    return {layers, sequences, of, *account, options, move_on};
  }

  // Steps (context.cpp).
  Status plan_step(const Batch& batch);
  Status check_complete(const Batch& batch) const;  ///< an error if a sequence of the batch is incomplete
  /// Lets n_most prompts continue in a new segment where theirs has n_tokens or more, some compressed.
  void continue_full(uint32_t n_tokens, uint64_t n_most);
  uint32_t n_streamed(SequenceId sequence) const;

  // Compression (compression.cpp).
  /// Prompts that ended with the last step, if nothing is generated from them in this one, and those that nobody reads
  /// any more (a request that was cancelled).
  void commit_idle();
  /// A generated token ends the prompt before it: compresses what is staged, which may make the room that others need.
  /// Here and not in store(), which the engine calls on one thread.
  void commit_before_generation();
  /// True if what the segment has in the layer is compressed by a later step: prefill=spread, and no limit of memory.
  bool waits(const context::ContextLayer& layer, SegmentId segment) const;
  bool any_waits(SegmentId segment) const;   ///< in any layer
  void commit_share(SegmentId segment);      ///< in the next of the layers that wait
  Status commit_ended(SequenceId sequence);  ///< prompts that ended with the last step, of one sequence or of all
  Status commit_prompt(SegmentId segment);
  Status share_bits(SegmentId segment, uint32_t from, uint32_t n_to_come) {
    return layers.share_bits(segment, from, n_to_come, options.n_threads);
  }
  void commit_unattended();  ///< what attention would have, in layers that were not attended

  // Tokens of a step (storing.cpp). taken(): where the context keeps the cells; error: the batch has fewer tokens.
  Result<std::span<const CellPlace>> taken(uint32_t first, uint64_t n) const;
  /// The tokens of a store() that go to one segment.
  struct Part {
    SegmentId segment = 0;
    uint32_t stream = 0;
    bool generates = false, measured = false;  ///< see StepPlan::Run
    SequenceId sequence = 0;
    std::vector<Cell> cells;     ///< of the stream
    std::vector<uint32_t> rows;  ///< of the call, one per cell
  };
  /// Valid until the next call. Error: more tokens than the batch has, a stream without a token.
  Result<std::span<const Part>> parts_of(const context::ContextLayer& layer, std::span<const CellPlace> cells);
  Status stage(context::ContextLayer& layer, std::span<const Part> parts);
  void count_measured(const context::ContextLayer& layer, std::span<const Part> parts);
  void write(context::ContextLayer& layer, std::span<const Part> parts, const float* rows, size_t stride, bool keys);
  const context::StepPlan::Run* run_of_row(uint32_t stream, uint32_t row) const;
  context::StepPunctuation punctuation;
  std::vector<Part> parts;  ///< kept, as are those below: a generation step allocates nothing
  std::vector<float> gathered, tensor_rows;
  std::vector<AttendArgs> tensor_calls;  ///< of attend_tensors(), as tensor_rows

  // Attention (attending.cpp).
  Status collect_calls(const context::ContextLayer& layer, std::span<const AttendArgs> calls,
                       std::vector<LayerAttendArgs>& to) const;
  /// Masks of the tokens first .. first + n - 1 of the step, where the context keeps the cells, by window and stream.
  struct OwnMasks {
    uint32_t first = 0, n = 0;
    std::map<std::pair<uint32_t, uint32_t>, context::CellMask> masks;
  } own_masks;
  /// Makes those of the layer's last store(), unless they are there: layers of one window share them.
  void make_masks(const context::ContextLayer& layer);
  const context::CellMask* own_mask(const context::ContextLayer& layer, uint32_t stream) const;  ///< null: none

  /// Threads of attend_all(). A child of fork() has none of its parent's: it starts its own.
  ThreadTeam& threads();
  std::unique_ptr<ThreadTeam> team;
  int64_t team_process = 0;

  // Cells and sequences (sequence_calls.cpp).
  /// loading: the engine has cells of a state already whose content comes next.
  Status forget_freed_cells(bool loading = false);
  void forget_cells(const CellsByLayer& cells);
  void forget_sequence(SequenceId sequence);
  /// Notes why a sequence, or kAllSequences, does not hold what the engine takes it to hold.
  void set_incomplete(SequenceId sequence, const Error& why) noexcept;
  /// Marks what lacks cells that the engine has.
  void find_missing(const CellsByLayer& cells);
  Status copy_stream(SequenceId from, SequenceId to);
  /// Frees what a sequence of a split context holds.
  void empty_stream(SequenceId sequence);
  /// Budget::make_room_for(), after prompts that ended are compressed, if there is no room.
  Status make_room_for(const std::function<uint64_t(const policy::Rung*)>& bytes_at,
                       const std::function<void(const policy::Rung&)>& lower);
  void rotate(int index, const std::map<uint32_t, std::map<Cell, Position>>& moved);
  void clear();

  // Errors.
  void fail(const Error& error) noexcept;
  Status failure() const noexcept;
  void reset_failure();

 private:
  mutable std::mutex failure_mutex_;
  Status failure_;
};

/// The parts of a context, for the library's own files and its tests.
inline Context::Impl& impl_of(const Context& context) { return *context.impl_; }

class Snapshot {
 public:
  std::map<int, std::unique_ptr<LayerCache>> layers;
  context::Sequences sequences;
  context::CellTable cells;
};

}  // namespace mikv
