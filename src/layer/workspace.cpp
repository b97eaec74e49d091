#include "layer/workspace.hpp"

#include <algorithm>

namespace mikv {

Workspace::Workspace(uint32_t max_threads, uint32_t max_calls, uint32_t n_kv_heads)
    : impl_(std::make_unique<Impl>(std::max(1u, max_threads), std::max(1u, max_calls), n_kv_heads)) {}
Workspace::~Workspace() = default;
uint32_t Workspace::max_threads() const { return uint32_t(impl_->threads.size()); }
void Workspace::reserve_heads(uint32_t n_kv_heads) { impl_->reserve_heads(n_kv_heads); }

void Workspace::forget_failed() {
  for (attention::Counter& counter : impl_->done) counter.n = 0;
  for (attention::ThreadSlot& slot : impl_->threads) {
    for (auto& scores : slot.scores) std::fill(scores.begin(), scores.end(), 0.0f);
  }
}

uint64_t Workspace::bytes() const {
  uint64_t bytes = 0;
  const auto add = [&bytes](const auto&... vectors) { ((bytes += vectors.capacity() * sizeof(vectors[0])), ...); };
  const auto add_state = [&](const attention::RowState& s) {
    add(s.max, s.sum, s.acc, s.tier_sum, s.tier_acc, s.zeros);
  };
  for (const attention::ThreadSlot& slot : impl_->threads) {
    for (const attention::PreparedRows* rows : {&slot.raw, &slot.tier, &slot.outliers}) {
      add(rows->q, rows->q_sums, rows->q_scales, rows->q_integers, rows->bias, rows->errors, rows->bias_with_error);
    }
    add(slot.tiers, slot.mask_low, slot.mask_high, slot.logits, slot.factors, slot.decoded, slot.weights,
        slot.inverse_sum, slot.sums, slot.mask_row, slot.means);
    bytes += slot.kept.bytes();
    add_state(slot.state);
    for (const auto& scores : slot.scores) add(scores);
  }
  for (const attention::Partial& partial : impl_->partials) {
    add_state(partial.state);
    bytes += partial.kept.bytes();
  }
  return bytes;
}

}  // namespace mikv
