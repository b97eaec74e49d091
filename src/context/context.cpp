// Context: creation, layers and steps. What a step stores is in storing.cpp, what it attends to in attending.cpp;
// sequences are in sequence_calls.cpp, states in states.cpp.
#include <algorithm>

#include "context/context_impl.hpp"

namespace mikv {

using context::CommitRule;
using context::ContextLayer;
using context::guarded;
using context::no_layer;
using context::no_second_half;
using context::rule_of;
using context::StepPlan;

namespace {

constexpr uint32_t kMaxSequences = 4096;
constexpr uint32_t kMaxThreads = 1024;
// Tokens beyond the windows of all sequences are forgotten from time to time, not in each step.
constexpr uint32_t kForgetWindowEvery = 256;

}  // namespace

Error context::no_layer(int layer) {
  return Error{"layer " + std::to_string(layer) + " is not known; declare it by add_layer"};
}

Error context::no_second_half(int layer) {
  return Error{"store: layer " + std::to_string(layer) + " got keys without values, or values without keys"};
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
