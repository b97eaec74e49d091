#include "context/step_punctuation.hpp"

#include <algorithm>

namespace mikv::context {

void StepPunctuation::begin(const Batch& batch, const ContextOptions& options) {
  by_stream_.clear();
  unified_ = options.unified;
  if (!options.spec.keeps_punctuation() || std::ranges::none_of(batch.tokens, &Batch::Token::punctuation)) return;
  const auto is_other = [&](const Batch::Token& token) { return token.sequence != batch.tokens.front().sequence; };
  // Which row is which token is not known (StepPlan::make).
  if (unified_ && !options.tokens_in_order && std::ranges::any_of(batch.tokens, is_other)) return;
  by_stream_.resize(unified_ ? 1 : options.n_sequences);
  for (const Batch::Token& token : batch.tokens) {
    by_stream_[unified_ ? 0 : size_t(token.sequence)].push_back(token.punctuation);
  }
}

std::span<const uint8_t> StepPunctuation::of(ContextLayer& layer, uint32_t stream, std::span<const uint32_t> rows) {
  if (by_stream_.empty()) return {};
  layer.n_stored.resize(by_stream_.size());
  const std::vector<uint8_t>& of_stream = by_stream_[stream];
  found_.clear();
  for (const uint32_t row : rows) {
    const size_t at = unified_ ? layer.first_row + row : layer.n_stored[stream]++;
    found_.push_back(at < of_stream.size() && of_stream[at]);
  }
  return found_;
}

}  // namespace mikv::context
