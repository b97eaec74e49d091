// Context: creation, layers and steps. Sequences are in sequence_calls.cpp, states in states.cpp.
#include <algorithm>
#include <cmath>

#include <unistd.h>

#include "context/context_impl.hpp"
#include "mikv/reference.hpp"

namespace mikv {

using context::CommitRule;
using context::ContextLayer;
using context::guarded;
using context::kFirstTokens;
using context::no_layer;
using context::rule_of;
using context::StepPlan;

namespace {

constexpr uint32_t kMaxSequences = 4096;
constexpr uint32_t kMaxThreads = 1024;
// Tokens beyond the windows of all sequences are forgotten from time to time, not in each step.
constexpr uint32_t kForgetWindowEvery = 256;

Error no_second_half(int layer) {
  return Error{"store: layer " + std::to_string(layer) + " got keys without values, or values without keys"};
}

}  // namespace

Error context::no_layer(int layer) {
  return Error{"layer " + std::to_string(layer) + " is not known; declare it by add_layer"};
}

Error context::out_of_memory() noexcept {
  return Error::out_of_memory("out of memory in the KV cache; use fewer or shorter sequences");
}

Context::Impl::Impl(ContextOptions given)
    : options(std::move(given)),
      account(std::make_shared<MemoryAccount>(options.account)),
      own_cells(options.n_sequences, options.unified, options.cells ? 0 : options.n_cells),
      owner(options.cells ? options.cells : &own_cells),
      sequences(options.n_sequences, options.unified),
      workspace(options.n_threads, options.n_sequences, 0),
      incomplete(options.n_sequences) {}

Context::Context(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Context::~Context() = default;

Result<std::unique_ptr<Context>> Context::create(ContextOptions options) {
  const auto range = [](const char* what, uint32_t value, uint32_t most) {
    const std::string text = std::string(what) + " is " + std::to_string(value) + "; use 1 to " + std::to_string(most);
    return value >= 1 && value <= most ? Status() : Status(Error{text});
  };
  for (const Status& status :
       {range("n_sequences", options.n_sequences, kMaxSequences), range("n_threads", options.n_threads, kMaxThreads),
        range("n_ubatch", options.n_ubatch, kMaxCells), range("n_cells", options.n_cells, kMaxCells)}) {
    if (!status) return status.error();
  }
  return guarded([&]() -> Result<std::unique_ptr<Context>> {
    return std::unique_ptr<Context>(new Context(std::make_unique<Impl>(std::move(options))));
  });
}

// ---------------------------------------------------------------- layers

Status Context::add_layer(int layer, const LayerShape& shape, uint32_t n_cells, uint32_t window) {
  if (layer < 0) return Error{"layer " + std::to_string(layer) + " is negative"};
  if (const ContextLayer* known = impl_->layers.find(layer)) {
    if (known->cache->shape() == shape) return {};
    return Error{ErrorCode::unsupported,
                 "layer " + std::to_string(layer) + ": its attention changes shape between steps"};
  }
  if (n_cells == 0 || impl_->keeps_cells()) n_cells = impl_->options.n_cells;
  return guarded([&]() -> Status {
    auto balancers = impl_->balancer_file.of(impl_->spec(), layer);
    if (!balancers) return balancers.error();
    auto cache = LayerCache::create(shape, impl_->spec(), n_cells, impl_->account, std::move(balancers).value());
    if (!cache) return Error{cache.error().code, "layer " + std::to_string(layer) + ": " + cache.message()};
    impl_->workspace.reserve_heads(shape.n_kv_heads);
    ContextLayer added;
    added.cache = std::move(cache).value();
    added.cache->record_from(context::kRecordFrom);
    added.n_cells = n_cells;
    added.window = window;
    impl_->own_cells.add_layer(layer, window);
    impl_->layers.layers.emplace(layer, std::move(added));
    return {};
  });
}

Status Context::set_rope(int layer, Rope rope) {
  ContextLayer* known = impl_->layers.find(layer);
  if (!known) return no_layer(layer);
  return guarded([&]() -> Status {
    const Status set = known->cache->set_rope(rope);
    if (set) known->rope = std::move(rope);
    return set;
  });
}

std::vector<int> Context::layers() const {
  std::vector<int> numbers;
  for (const auto& [index, layer] : impl_->layers.layers) numbers.push_back(index);
  return numbers;
}

const LayerShape& Context::shape(int layer) const { return impl_->layers.find(layer)->cache->shape(); }

// ---------------------------------------------------------------- begin and end of a step

Status Context::Impl::plan_step(const Batch& batch) {
  if (const Status status = forget_freed_cells(); !status) return status;
  if (const Status status = check_complete(batch); !status) return status;
  auto made = StepPlan::make(batch, sequences, options.tokens_in_order);
  if (!made) return made.error();
  plan = std::move(made).value();
  // With a limit of memory, Budget looks first whether there is room.
  if (account->room() == UINT64_MAX) continue_full(context::kSegmentTokens, UINT64_MAX);
  if (spec().prefill == Prefill::streaming) {
    plan.let_wait([this](SequenceId sequence) { return n_streamed(sequence); });
  }
  commit_idle();
  for (const StepPlan::Run& run : plan.runs()) {
    const CommitRule rule = rule_of(spec(), run, pressed_from());
    if (!run.generates && !rule.commits) continue;          // drafts are not, but what was staged before them is
    if (run.generates && any_waits(run.segment)) continue;  // commit_share() does it
    const Status status = share_bits(run.segment, rule.from, rule.commits ? std::min(run.n, options.n_ubatch) : 0);
    if (!status) fail(status.error());
  }
  return {};
}

Status Context::begin_step(const Batch& batch) {
  if (!impl_->failure()) impl_->workspace.forget_failed();
  impl_->reset_failure();  // each step fails for itself: a server continues with the next request
  impl_->own_cells.begin_step();
  const Status begun = guarded([&]() -> Status {
    Status status = impl_->plan_step(batch);
    for (auto& [index, layer] : impl_->layers.layers) {
      layer.first_row = layer.next_row = 0;
      layer.n_stored.clear();
      layer.wants_k = layer.wants_v = layer.attended = false;
    }
    if (status) {
      impl_->punctuation.begin(batch, impl_->options);
      status = impl_->budget.make_room(impl_->scene(impl_->plan));
      if (status) impl_->commit_before_generation();
      for (const StepPlan::Run& run : impl_->plan.runs()) {
        if (run.may_end) impl_->may_have_ended.push_back(run.segment);
      }
    }
    if (status && impl_->keeps_cells()) {
      status = impl_->own_cells.take(batch);
      impl_->own_masks = {};
    }
    if (status) impl_->refusals.fitted(batch.tokens.size());
    return status;
  });
  if (begun.code() == ErrorCode::over_budget) impl_->refusals.refused(batch.tokens.size());
  if (!begun) {
    impl_->account->end_reservation();
    impl_->fail(begun.error());
    impl_->cells_freed = true;
  }
  return begun;
}

Status Context::end_step(bool done) {
  impl_->layers.go_to(nullptr);
  impl_->account->end_reservation();
  if (done) {
    for (const auto& [index, layer] : impl_->layers.layers) {
      if (layer.wants_k || layer.wants_v) impl_->fail(no_second_half(index));
    }
  }
  if (done && impl_->failure()) impl_->commit_unattended();
  const Status failed = impl_->failure();
  if (!done || !failed) {  // the step's cells are taken back
    if (impl_->keeps_cells()) impl_->own_cells.give_back();
    impl_->cells_freed = true;
    return failed;
  }
  ++impl_->figures.n_steps;
  if (impl_->keeps_cells() && impl_->own_cells.any_window()) {
    impl_->n_since_window += impl_->plan.n_tokens();
    if (impl_->n_since_window >= kForgetWindowEvery) {
      impl_->cells_freed = true;
      impl_->n_since_window = 0;
    }
  }
  return failed;
}

Status Context::Impl::check_complete(const Batch& batch) const {
  const auto check = [&](SequenceId sequence) -> Status {
    if (!sequences.valid(sequence) || incomplete[size_t(sequence)]) return {};
    const Error& why = incomplete[size_t(sequence)].error();
    return Error{why.code, "sequence " + std::to_string(sequence) + " is incomplete (" + why.message +
                               "); remove it and read its text again"};
  };
  for (const Batch::Token& token : batch.tokens) {
    if (const Status status = check(token.sequence); !status) return status;
  }
  for (const Batch::Shared& shared : batch.shared) {
    if (const Status status = check(shared.sequence); !status) return status;
  }
  return {};
}

void Context::Impl::continue_full(uint32_t n_tokens, uint64_t n_most) {
  // Where a budget took from a segment, new text is held as asked for again once half of the room is free.
  const bool free = account->room() != UINT64_MAX && account->used() <= account->room();
  const auto full = [&](SegmentId segment) {
    if (n_most == 0 || !(layers.any_full(segment, n_tokens) || (free && layers.is_lowered(segment)))) return false;
    --n_most;
    return true;
  };
  for (const StepPlan::Move& move : plan.move_on(sequences, full)) layers.continue_segment(move.from, move.to);
}

uint32_t Context::Impl::n_streamed(SequenceId sequence) const {
  const context::LayerSet::Most most = layers.most_compressed(sequences.seen_by(sequence));
  return context::streamed_tokens(spec(), most.n_cells, most.n_compressed);
}

// ---------------------------------------------------------------- store

// Rows of a unified context come in the order of the batch; otherwise a stream has the tokens of one sequence.
const StepPlan::Run* Context::Impl::run_of_row(uint32_t stream, uint32_t row) const {
  if (!sequences.unified()) return plan.run_of(SequenceId(stream));
  for (const StepPlan::Run& run : plan.runs()) {
    if (row < run.first + run.n) return &run;
  }
  return nullptr;
}

Result<std::span<const Context::Impl::Part>> Context::Impl::parts_of(const ContextLayer& layer,
                                                                     std::span<const CellPlace> cells) {
  size_t n_parts = 0;
  for (uint32_t row = 0; row < cells.size(); ++row) {
    const auto [stream, cell] = cells[row];
    const StepPlan::Run* run = run_of_row(stream, layer.first_row + row);
    if (!run) return Error{"a token is stored that is in no batch of this step"};
    size_t p = 0;
    while (p < n_parts && parts[p].segment != run->segment) ++p;
    if (p == n_parts) {
      if (++n_parts > parts.size()) parts.emplace_back();
      parts[p].segment = run->segment;
      parts[p].stream = stream;
      parts[p].generates = parts[p].measured = false;
      parts[p].sequence = run->sequence;
      parts[p].cells.clear();
      parts[p].rows.clear();
    }
    parts[p].generates |= run->generates;
    parts[p].measured |= run->measured;
    parts[p].cells.push_back(cell);
    parts[p].rows.push_back(row);
  }
  return std::span<const Part>(parts).first(n_parts);
}

Status Context::Impl::stage(ContextLayer& layer, std::span<const Part> of_call) {
  // A sliding window may reuse cells of another sequence. All of them are forgotten before anything is staged: what is
  // erased afterwards would move tokens that wait for their values.
  for (const Part& part : of_call) {
    sequences.for_each_segment([&](SegmentId segment) {
      if (segment != part.segment && sequences.stream_of_segment(segment) == part.stream) {
        layer.cache->erase(segment, part.cells);
      }
    });
  }
  // What commit_before_generation() had no memory for.
  for (const Part& part : of_call) {
    if (!part.generates || waits(layer, part.segment)) continue;
    const uint32_t from = context::pressed(kFirstTokens, pressed_from());
    if (const Status status = layer.cache->commit(part.segment, from); !status) return status;
  }
  for (const Part& part : of_call) {
    const std::span<const uint8_t> marks = punctuation.of(layer, part.stream, part.rows);
    if (const Status status = layer.cache->stage(part.segment, part.cells, marks); !status) return status;
  }
  return {};
}

void Context::Impl::count_measured(const ContextLayer& layer, std::span<const Part> of_call) {
  if (&layer != &layers.layers.begin()->second) return;
  for (const Part& part : of_call) {
    if (!part.measured) continue;
    figures.n_measured += part.rows.size();
    for (const SegmentId segment : sequences.seen_by(part.sequence)) {
      const context::SegmentCount count = layer.count(segment);
      figures.n_measured_seen += part.rows.size() * count.n_cells;
      if (!spec().uncompressed()) figures.n_measured_compressed += part.rows.size() * (count.n_cells - count.n_staged);
    }
  }
}

void Context::Impl::write(ContextLayer& layer, std::span<const Part> of_call, const float* rows, size_t stride,
                          bool keys) {
  const LayerShape& shape = layer.cache->shape();
  const size_t row_floats = size_t{shape.n_kv_heads} * (keys ? shape.head_dim_k : shape.head_dim_v);
  const auto put = keys ? &LayerCache::write_k : &LayerCache::write_v;
  for (const Part& part : of_call) {
    if (part.rows.back() - part.rows.front() + 1 == part.rows.size()) {
      (layer.cache.get()->*put)(part.segment, rows + part.rows.front() * stride, stride, 0, 1);
      continue;
    }
    gathered.clear();
    for (const uint32_t row : part.rows) {
      gathered.insert(gathered.end(), rows + row * stride, rows + row * stride + row_floats);
    }
    (layer.cache.get()->*put)(part.segment, gathered.data(), row_floats, 0, 1);
  }
}

Result<std::span<const CellPlace>> Context::Impl::taken(uint32_t first, uint64_t n) const {
  const auto all = own_cells.taken();
  if (n > all.size() - std::min<size_t>(first, all.size())) return Error{"more tokens are stored than the batch has"};
  return all.subspan(first, n);
}

Status Context::store(int layer, std::span<const CellPlace> cells, const float* k, size_t k_stride, const float* v,
                      size_t v_stride, uint32_t n_tokens) {
  ContextLayer* known = impl_->layers.find(layer);
  if (!known) fail(no_layer(layer));
  if (const Status failed = impl_->failure(); !failed) return failed;  // not everything was staged
  impl_->layers.go_to(known);
  const Status stored = guarded([&]() -> Status {
    const bool completes =
        (known->wants_k || known->wants_v) && known->wants_k == (k != nullptr) && known->wants_v == (v != nullptr);
    if (!completes && (known->wants_k || known->wants_v)) return no_second_half(layer);
    if (!completes) known->first_row = known->next_row;
    if (impl_->keeps_cells()) {
      const auto taken = impl_->taken(known->first_row, n_tokens);
      if (!taken) return taken.error();
      cells = taken.value();
    }
    if (completes && cells.size() != known->next_row - known->first_row)
      return Error{"store: the values of a call of its own must be of as many tokens as the keys"};
    const LayerShape& shape = known->cache->shape();
    if ((k && k_stride < size_t{shape.n_kv_heads} * shape.head_dim_k) ||
        (v && v_stride < size_t{shape.n_kv_heads} * shape.head_dim_v)) {
      return Error{"store: a row stride is smaller than a row"};
    }
    const auto parts = impl_->parts_of(*known, cells);
    if (!parts) return parts.error();
    if (!completes) {
      known->next_row += uint32_t(cells.size());
      if (const Status status = impl_->stage(*known, parts.value()); !status) return status;
      impl_->count_measured(*known, parts.value());
      if (impl_->keeps_cells()) impl_->make_masks(*known);
      known->wants_k = !k;
      known->wants_v = !v;
    } else {
      known->wants_k = known->wants_v = false;
    }
    if (k) impl_->write(*known, parts.value(), k, k_stride, true);
    if (v) impl_->write(*known, parts.value(), v, v_stride, false);
    return {};
  });
  if (!stored) impl_->fail(stored.error());
  return stored;
}

// ---------------------------------------------------------------- attend

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

// ---------------------------------------------------------------- errors and figures

void Context::Impl::fail(const Error& error) noexcept {
  const std::lock_guard lock(failure_mutex_);
  if (failure_) failure_ = Error::copy_of(error);
}

Status Context::Impl::failure() const noexcept {
  const std::lock_guard lock(failure_mutex_);
  return failure_ ? Status() : Status(Error::copy_of(failure_.error()));
}

void Context::Impl::reset_failure() {
  const std::lock_guard lock(failure_mutex_);
  failure_ = {};
}

void Context::fail(const Error& error) { impl_->fail(error); }
Status Context::failure() const { return impl_->failure(); }

void Context::set_budget(uint64_t bytes) {
  (impl_->options.account ? impl_->options.account : impl_->account)->set_limit(bytes);
}
MemoryAccount& Context::account() const { return *impl_->account; }
MemoryUsage Context::memory_usage() const { return impl_->layers.usage(); }
const Spec& Context::spec() const { return impl_->spec(); }

std::vector<SequenceId> Context::lowered_sequences() const {
  std::vector<SequenceId> lowered;
  for (SequenceId s = 0; impl_->sequences.valid(s); ++s) {
    const auto seen = impl_->sequences.seen_by(s);
    if (std::ranges::any_of(seen, [&](SegmentId segment) { return impl_->layers.is_lowered(segment); }))
      lowered.push_back(s);
  }
  return lowered;
}

const ContextOptions& Context::options() const { return impl_->options; }

Figures Context::figures() const {
  Figures figures = impl_->figures;
  figures.n_lowered = impl_->budget.n_lowered();
  figures.n_refused = impl_->budget.n_refused();
  figures.n_refused_requests = impl_->refusals.n_requests();
  figures.n_undecided_requests = impl_->refusals.n_undecided();
  return figures;
}

}  // namespace mikv
