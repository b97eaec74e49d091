#include "context/commit_rules.hpp"

#include <algorithm>

namespace mikv::context {

uint32_t streamed_tokens(const Spec& spec, uint64_t max_cells, uint64_t n_compressed) {
  const double lo_bits = spec.mixed() ? spec.bits : format_bits(spec.lo);
  const double bits = spec.keep * format_bits(spec.hi) + (1.0 - spec.keep) * lo_bits;
  const double room = double(std::min<uint64_t>(max_cells / 2, kStreamedTokens));
  return uint32_t(
      std::max<double>(kFirstStreamedTokens, room - double(n_compressed) * bits / format_bits(Format::f16)));
}

bool is_full(const Spec& spec, SegmentCount count, uint32_t n_tokens) {
  return spec.mixed() && count.n_cells >= n_tokens && count.compressed();
}

bool is_ready(uint32_t from, SegmentCount count, uint32_t n_to_come) {
  return count.compressed() || count.n_staged + n_to_come >= from;
}

CommitRule rule_of(const Spec& spec, const StepPlan::Run& run, std::optional<uint32_t> pressed_from) {
  if (run.single || run.generates) return {run.single, pressed(kFirstTokens, pressed_from)};
  const bool streaming = spec.prefill == Prefill::streaming || run.measured;
  return {pressed_from || streaming, pressed(streaming ? run.n_streamed : UINT32_MAX, pressed_from)};
}

}  // namespace mikv::context
