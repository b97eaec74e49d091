// What a step needs: bytes_of_step() and its parts. The bytes themselves come from LayerCache::growth.
#include <algorithm>
#include <map>

#include "context/budget.hpp"

namespace mikv::context {
namespace {

// What becomes of staged tokens takes no more than this part of what they take in f16; all of that in bytes.
constexpr uint64_t kCompressedShare = 2;

uint64_t compressed_part(uint64_t staged_bytes, const BudgetState& state) {
  return staged_bytes / (state.staged_in_bytes ? 1 : kCompressedShare);
}

struct Demand {
  int64_t lasting = 0;
  uint64_t transient = 0;
};

// Of one segment in one layer. n: its tokens in the step.
Demand demand_of(const ContextLayer& layer, SegmentId segment, uint32_t n, const StepPlan& plan,
                 const BudgetState& state, uint32_t n_ubatch) {
  const SegmentCount count = layer.count(segment);
  uint32_t from = 0;
  bool compressed = true;
  for (const StepPlan::Run& run : plan.runs()) {
    if (run.segment != segment) continue;
    const CommitRule rule = rule_of(state.spec, run, state.pressed_from);
    from = std::max(from, rule.from);
    compressed = compressed && rule.commits && is_ready(rule.from, count, n);
  }
  const LayerCache::Growth growth = layer.cache->growth(segment, n, n_ubatch, compressed);
  // What micro-batches put before there are `from` tokens waits, in all layers, until one after the other compresses
  // them.
  int64_t waiting = 0;
  if (compressed && !is_ready(from, count, 1)) {
    const uint32_t n_most = uint32_t(from - count.n_staged - 1);
    const uint32_t n_waiting = most_waiting(n_most, plan.n_tokens() - n, n_ubatch);
    waiting = layer.cache->growth(segment, n_waiting, n_ubatch, false).lasting;
  }
  return {waiting > 0 ? std::max(waiting, growth.lasting) : growth.lasting,
          growth.transient + compressed_part(uint64_t(std::max<int64_t>(0, waiting)), state)};
}

}  // namespace

uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch) {
  const uint32_t over = n_most % n_ubatch;
  return n_ubatch - over <= n_others ? n_most : n_most - over + std::min(over, n_others);
}

uint64_t bytes_of_step(const LayerSet& layers, const StepPlan& plan, const BudgetState& state, uint32_t n_ubatch) {
  std::map<SegmentId, uint32_t> tokens;
  for (const StepPlan::Run& run : plan.runs()) tokens[run.segment] += run.n;
  Demand all;
  // Layers store, attend and compress one after the other.
  for (const auto& [index, layer] : layers.layers) {
    uint64_t of_layer = 0;
    for (const auto& [segment, n] : tokens) {
      const Demand demand = demand_of(layer, segment, n, plan, state, n_ubatch);
      all.lasting += demand.lasting;
      of_layer += demand.transient;
    }
    all.transient = std::max(all.transient, of_layer);
  }
  return uint64_t(std::max<int64_t>(0, all.lasting)) + all.transient;
}

uint64_t bytes_to_compress(const LayerSet& layers, const BudgetState& state, uint64_t staged_bytes) {
  if (state.spec.uncompressed()) return 0;
  return compressed_part(staged_bytes / std::max<size_t>(1, layers.layers.size()), state);
}

}  // namespace mikv::context
