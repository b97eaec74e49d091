#include "context/demand.hpp"

#include <algorithm>
#include <map>
#include <vector>

namespace mikv::context {
namespace {

// Of one layer in a step.
struct Demand {
  int64_t first = 0;        ///< what is left of compressing segments that generate, before anything is put
  uint64_t most_first = 0;  ///< beside what is there, while that is done
  int64_t held = 0;         ///< the most that is left of what is put, in this step or while micro-batches wait
  uint64_t most = 0;        ///< beside that, while a micro-batch is put and compressed
  uint64_t later = 0;       ///< beside that, once what the step leaves waiting is compressed
};

// Adds one segment. n: its tokens in the step.
void add_segment(Demand& demand, const ContextLayer& layer, SegmentId segment, uint32_t n, const StepPlan& plan,
                 const Pressure& pressure, uint32_t n_ubatch) {
  SegmentCount count = layer.count(segment);
  uint32_t from = 0;
  bool compressed = true, generates = false;
  for (const StepPlan::Run& run : plan.runs()) {
    if (run.segment != segment) continue;
    const CommitRule rule = rule_of(pressure.spec, run, pressure.pressed_from);
    from = std::max(from, rule.from);
    compressed = compressed && rule.commits && is_ready(rule.from, count, n);
    generates = generates || run.generates;
  }
  const bool first = compressed && generates && count.n_staged && is_ready(from, count);  // Context::Impl::stage()
  // What is added to compressed tokens takes no more than what is compressed alone.
  const bool alone = pressure.committed && count.n_staged >= tier::kMinCalibrationTokens;
  const SegmentId of = alone ? kMaxSegments : segment;
  if (alone) count = {};
  const LayerGrowth growth = layer.cache->growth(of, n, n_ubatch, compressed, pressure.rung, plan.n_tokens() - n);
  demand.most += growth.transient + (first ? 0 : growth.compressed);
  if (first) {
    demand.first += growth.lasting;
    demand.most_first += growth.transient + growth.compressed;
    return;
  }
  if (!compressed) {
    const LayerGrowth later = layer.cache->growth(of, n, n_ubatch, true, pressure.rung, plan.n_tokens() - n);
    demand.later = std::max(demand.later, later.compressed);
  }
  int64_t waiting = 0;
  if (compressed && !is_ready(from, count, 1)) {
    const uint32_t n_most = uint32_t(from - count.n_staged - 1);
    const uint32_t n_waiting = most_waiting(n_most, plan.n_tokens() - n, n_ubatch);
    waiting = layer.cache->growth(of, n_waiting, n_ubatch, false, pressure.rung).lasting;
  }
  demand.held += std::max({int64_t{0}, growth.lasting, waiting});
}

}  // namespace

uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch) {
  const uint32_t over = n_most % n_ubatch;
  return n_ubatch - over <= n_others ? n_most : n_most - over + std::min(over, n_others);
}

uint64_t bytes_of_step(const LayerSet& layers, const StepPlan& plan, const Pressure& pressure, uint32_t n_ubatch) {
  std::map<SegmentId, uint32_t> tokens;
  for (const StepPlan::Run& run : plan.runs()) tokens[run.segment] += run.n;
  int64_t first = 0, most_first = 0, held = 0, most = 0;
  for (const auto& [index, layer] : layers.layers) {
    Demand demand;
    for (const auto& [segment, n] : tokens) add_segment(demand, layer, segment, n, plan, pressure, n_ubatch);
    // Layer after layer compresses what generates; then micro-batches pass through layers that have those before.
    most_first = std::max(most_first, first + int64_t(demand.most_first));
    first += demand.first;
    held += demand.held;
    most = std::max(most, int64_t(std::max(demand.most, demand.later)));
  }
  // While one segment waits, micro-batches may have put all tokens of another.
  return uint64_t(std::max<int64_t>({0, most_first, first + held + most}));
}

uint64_t bytes_to_compress(const LayerSet& layers, const Sequences& sequences, const policy::Rung* rung) {
  uint64_t most = 0;
  for (const auto& [index, layer] : layers.layers) {
    sequences.for_each_segment([&, &layer = layer](SegmentId segment) {
      if (!layer.count(segment).n_staged) return;
      most = std::max(most, layer.cache->growth(segment, 0, 0, true, rung).compressed);
    });
  }
  return most;
}

}  // namespace mikv::context
