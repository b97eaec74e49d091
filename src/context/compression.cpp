// Compression of prompts that ended, of what rests, and before a token is generated. What attention compresses at once
// is decided by commit_rules.hpp.
#include <algorithm>
#include <vector>

#include "context/context_impl.hpp"

namespace mikv {

using context::CommitRule;
using context::ContextLayer;
using context::kFirstTokens;
using context::rule_of;
using context::StepPlan;

Status Context::Impl::commit_prompt(SegmentId segment) {
  Status status = share_bits(segment, kFirstTokens, 0);
  if (status) status = layers.commit(segment, kFirstTokens, options.n_threads);
  layers.trim(segment);
  return status;
}

Status Context::Impl::commit_ended(SequenceId sequence) {
  Status first;
  std::erase_if(may_have_ended, [&](SegmentId segment) {
    const auto seen = [&](SequenceId s) {
      return std::ranges::find(sequences.seen_by(s), segment) != sequences.seen_by(s).end();
    };
    if (sequence != kAllSequences && !seen(sequence)) return false;
    if (const Status status = commit_prompt(segment); first && !status) first = status;
    return true;
  });
  return first;
}

bool Context::Impl::waits(const ContextLayer& layer, SegmentId segment) const {
  return spec().prefill == Prefill::spread && layer.count(segment).n_staged >= kFirstTokens &&
         account->room() == UINT64_MAX;
}

bool Context::Impl::any_waits(SegmentId segment) const {
  return std::ranges::any_of(layers.layers, [&](const auto& entry) { return waits(entry.second, segment); });
}

void Context::Impl::commit_share(SegmentId segment) {
  const auto share_of = [](uint64_t n, uint32_t n_steps) { return (n + n_steps - 1) / n_steps; };
  // Bits are shared once all heads are weighed. Where there is no memory for it, all waits as it is.
  const auto weighed =
      layers.weigh(segment, kFirstTokens, share_of(layers.n_kv_heads(), context::kWeighSteps), options.n_threads);
  if (!weighed || weighed.value() > 0) return;
  if (!share_bits(segment, kFirstTokens, 0)) return;
  uint64_t longest = 0;
  for (const auto& [index, layer] : layers.layers) {
    if (waits(layer, segment)) longest = std::max(longest, layer.count(segment).n_staged);
  }
  uint64_t n_left = std::max<uint64_t>(kFirstTokens, share_of(longest * layers.layers.size(), context::kCompressSteps));
  for (const auto& [index, layer] : layers.layers) {
    if (n_left == 0) break;
    if (!waits(layer, segment)) continue;
    const uint64_t n = context::share_of_layer(layer.count(segment).n_staged, n_left);
    LayerCache* const due = layer.cache.get();
    (void)LayerCache::commit({&due, 1}, segment, kFirstTokens, options.n_threads, uint32_t(n));
    n_left -= std::min(n_left, n);
  }
  if (!any_waits(segment)) layers.trim(segment);
}

void Context::Impl::commit_idle() {
  const auto runs = plan.runs();
  const auto in_step = [&](SegmentId segment) {
    return std::ranges::any_of(runs, [&](const StepPlan::Run& run) { return run.segment == segment; });
  };
  for (const SegmentId segment : may_have_ended) {
    if (!in_step(segment) && !any_waits(segment)) (void)commit_prompt(segment);  // or it waits as it is
  }
  may_have_ended.clear();
  // An engine that has a prompt to read puts it beside what is generated: one that is in no such step was given up. If
  // it comes back after all, it is as a streamed prompt is.
  if (spec().uncompressed() || !std::ranges::all_of(runs, &StepPlan::Run::generates)) return;
  sequences.for_each_segment([&](SegmentId segment) {
    if (in_step(segment) || !layers.any_staged(segment, kFirstTokens)) return;
    if (any_waits(segment)) return commit_share(segment);
    (void)commit_prompt(segment);  // or next time
  });
}

void Context::Impl::commit_before_generation() {
  if (spec().uncompressed()) return;
  const uint32_t from = context::pressed(kFirstTokens, pressed_from());
  for (const StepPlan::Run& run : plan.runs()) {
    if (!run.generates || !layers.any_staged(run.segment, 1)) continue;
    std::vector<LayerCache*> due;
    for (const auto& [index, layer] : layers.layers) {
      if (!waits(layer, run.segment)) due.push_back(layer.cache.get());
    }
    // Where there is no memory for it, store() tries again and fails.
    (void)LayerCache::commit(due, run.segment, from, options.n_threads);
    if (any_waits(run.segment)) commit_share(run.segment);
  }
}

void Context::Impl::commit_unattended() {
  if (spec().uncompressed()) return;
  for (auto& [index, layer] : layers.layers) {
    if (layer.attended || layer.next_row == 0) continue;
    for (const StepPlan::Run& run : plan.runs()) {
      const CommitRule rule = rule_of(spec(), run, pressed_from());
      if (!rule.commits || (run.generates && waits(layer, run.segment))) continue;
      if (const Status status = layer.cache->commit(run.segment, rule.from); !status) fail(status.error());
    }
  }
}

}  // namespace mikv
