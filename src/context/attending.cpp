// Context::attend: the calls of an engine as those of a layer, which know the segments that each token sees; threads.
#include <algorithm>

#include <unistd.h>

#include "context/context_impl.hpp"
#include "mikv/reference.hpp"

namespace mikv {

using context::CommitRule;
using context::ContextLayer;
using context::guarded;
using context::no_layer;
using context::no_second_half;
using context::rule_of;
using context::StepPlan;

void Context::Impl::make_masks(const ContextLayer& layer) {
  const uint32_t first = layer.first_row, n = layer.next_row - layer.first_row;
  if (own_masks.first != first || own_masks.n != n) own_masks = {first, n, {}};
  for (const CellPlace& place : own_cells.taken().subspan(first, n)) {
    const auto [mask, is_new] = own_masks.masks.try_emplace({layer.window, place.stream});
    if (is_new) mask->second = own_cells.mask(place.stream, layer.window, first, n);
  }
}

const context::CellMask* Context::Impl::own_mask(const ContextLayer& layer, uint32_t stream) const {
  const auto found = own_masks.masks.find({layer.window, stream});
  return found == own_masks.masks.end() ? nullptr : &found->second;
}

namespace {

Error more_than_stored(uint32_t n_tokens) {
  return Error{"attend: " + std::to_string(n_tokens) + " tokens, more than the layer's last store() kept"};
}

Mask mask_of(const context::CellMask* mask) {
  if (!mask) return {};
  return {Mask::Type::f16, mask->values.data(), size_t{mask->n_cells} * sizeof(uint16_t), mask->n_cells};
}

}  // namespace

Status Context::Impl::collect_calls(const ContextLayer& layer, std::span<const AttendArgs> calls,
                                    std::vector<LayerAttendArgs>& to) const {
  const auto add_call = [&](const AttendArgs& args, const StepPlan::Run& run, std::span<const SegmentId> segments) {
    LayerAttendArgs& call = to.emplace_back(args);
    const CommitRule rule = rule_of(spec(), run, pressed_from());
    call.segments = segments;
    const auto waiting = [&](SegmentId segment) { return waits(layer, segment); };
    call.commit = rule.commits && !(run.generates && std::ranges::any_of(segments, waiting));
    call.commit_from = rule.from;
    if (keeps_cells() && args.mask.type == Mask::Type::none) call.mask = mask_of(own_mask(layer, args.stream));
    return &call;
  };
  if (!sequences.unified()) {
    for (const AttendArgs& args : calls) {
      const StepPlan::Run* run = plan.run_of(SequenceId(args.stream));
      if (!run) return Error{"a sequence attends that is in no batch of this step"};
      const context::CellMask* own = own_mask(layer, args.stream);
      if (keeps_cells() && args.n_tokens > (own ? own->n_rows : 0)) return more_than_stored(args.n_tokens);
      if (std::ranges::any_of(calls.first(size_t(&args - calls.data())),
                              [&](const AttendArgs& before) { return before.stream == args.stream; })) {
        return Error{"attend: sequence " + std::to_string(args.stream) + " is named twice"};
      }
      add_call(args, *run, sequences.seen_by(run->sequence));
    }
    return {};
  }
  if (calls.size() != 1) return Error{"attend: a unified context takes one call for all tokens of a step"};
  const AttendArgs& all = calls[0];
  if (keeps_cells() && all.n_tokens > layer.next_row - layer.first_row) return more_than_stored(all.n_tokens);
  uint32_t set = UINT32_MAX;
  for (const StepPlan::Run& run : plan.runs()) {
    const uint32_t begin = std::max(run.first, layer.first_row);
    const uint32_t end = std::min(run.first + run.n, layer.first_row + all.n_tokens);
    if (begin >= end) continue;
    if (run.set == set) {
      to.back().n_tokens += end - begin;
      to.back().commit = false;  // not all of its segments may be ready for it
    } else {
      LayerAttendArgs* call = add_call(all, run, plan.segments_of_set(run.set));
      const uint32_t first = begin - layer.first_row;
      call->q += first * all.q_token_stride;
      call->out += first * all.out_token_stride;
      if (call->mask.data) {
        call->mask.data = static_cast<const uint8_t*>(call->mask.data) + first * call->mask.row_stride_bytes;
      }
      call->n_tokens = end - begin;
    }
    set = run.set;
  }
  return {};
}

Status Context::attend(int layer, std::span<const AttendArgs> calls, uint32_t thread, uint32_t n_threads) {
  ContextLayer* known = impl_->layers.find(layer);
  if (!known) {
    fail(no_layer(layer));
    return failure();
  }
  if (thread >= n_threads) {
    fail(Error{"attend: thread " + std::to_string(thread) + " of " + std::to_string(n_threads)});
    return failure();
  }
  const uint32_t usable = std::min(n_threads, impl_->workspace.max_threads());
  if (thread >= usable) return {};  // more threads than were asked for at creation: the rest have nothing to do
  if (const Status failed = failure(); !failed) return failed;  // the rest of the step has no effect
  if (thread == 0) known->attended = true;
  thread_local std::vector<LayerAttendArgs> of_thread;
  const Status attended = guarded([&]() -> Status {
    if (known->wants_k || known->wants_v) return no_second_half(layer);
    of_thread.clear();
    const Status collected = impl_->collect_calls(*known, calls, of_thread);
    return collected ? known->cache->attend(of_thread, impl_->workspace, thread, usable) : collected;
  });
  if (!attended) impl_->fail(attended.error());
  return attended;
}

ThreadTeam& Context::Impl::threads() {
  const int64_t process = int64_t(getpid());
  if (team && team_process != process) (void)team.release();  // its threads are not in this process: nothing to join
  if (!team) team = std::make_unique<ThreadTeam>(std::max(1u, options.n_threads));
  team_process = process;
  return *team;
}

Status Context::attend_all(int layer, std::span<const AttendArgs> calls) {
  const Status started = guarded([&]() -> Status {
    const auto work = [&](uint32_t thread, uint32_t n) { (void)attend(layer, calls, thread, n); };
    if (impl_->options.run_threads) {
      impl_->options.run_threads(impl_->options.n_threads, work);
    } else {
      ThreadTeam& team = impl_->threads();
      team.run([&](uint32_t thread) { work(thread, team.size()); });
    }
    return {};
  });
  if (!started) impl_->fail(started.error());
  return failure();
}

Status reference_attend(const Context& context, int layer, std::span<const AttendArgs> calls) {
  const ContextLayer* known = impl_of(context).layers.find(layer);
  if (!known) return no_layer(layer);
  return guarded([&]() -> Status {
    std::vector<LayerAttendArgs> of_layer;
    if (const Status status = impl_of(context).collect_calls(*known, calls, of_layer); !status) return status;
    for (const LayerAttendArgs& call : of_layer) {
      if (const Status status = reference_attend(*known->cache, call); !status) return status;
    }
    return {};
  });
}

}  // namespace mikv
