#include "report/ledger.hpp"

#include <algorithm>
#include <utility>

namespace mikv::report {
namespace {

void add(Figures& sum, const Figures& figures) {
  sum.n_steps += figures.n_steps;
  sum.n_lowered += figures.n_lowered;
  sum.n_refused_requests += figures.n_refused_requests;
}

}  // namespace

bool Ledger::note(const Context& context, Occasion occasion) {
  const auto began = std::chrono::steady_clock::now();
  if (occasion == Occasion::step) {
    const std::lock_guard lock(mutex_);
    const auto before = entries_.find(&context);
    if (before != entries_.end() && began < before->second.due) return false;
  }
  Entry now{context.memory_usage(), context.figures(), context.lowered_sequences().size()};
  if (occasion == Occasion::end) now.figures.n_refused_requests += now.figures.n_undecided_requests;
  std::string spec = context.spec().to_string();
  const MemoryAccount* shared = context.options().account.get();
  const MemoryAccount& account = shared ? *shared : context.account();
  const auto ended = std::chrono::steady_clock::now();
  now.due = ended + 100 * (ended - began);
  const std::lock_guard lock(mutex_);
  entries_[&context] = now;
  last_spec_ = std::move(spec);
  peak_bytes_ = std::max(peak_bytes_, account.peak());
  budget_bytes_ = account.limit();
  return true;
}

bool Ledger::forget(const Context& context) {
  const std::lock_guard lock(mutex_);
  if (const auto entry = entries_.extract(&context)) add(of_the_gone_, entry.mapped().figures);
  return !entries_.empty();
}

ReportFigures Ledger::sums() {
  const std::lock_guard lock(mutex_);
  ReportFigures sums;
  Figures counted = of_the_gone_;
  for (const auto& [context, entry] : entries_) {
    sums.usage += entry.usage;
    add(counted, entry.figures);
    sums.n_lowered_sequences += entry.n_lowered_sequences;
  }
  sums.n_steps = counted.n_steps;
  sums.n_lowered = counted.n_lowered;
  sums.n_refused_requests = counted.n_refused_requests;
  sums.n_contexts = entries_.size();
  sums.spec = last_spec_;
  sums.peak_bytes = peak_bytes_ = std::max(peak_bytes_, sums.usage.total());
  sums.budget_bytes = budget_bytes_;
  return sums;
}

}  // namespace mikv::report
