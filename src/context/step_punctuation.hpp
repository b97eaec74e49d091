// StepPunctuation: which tokens of a step are punctuation, found again when a layer stores them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "context/layer_set.hpp"
#include "mikv/context.hpp"

namespace mikv::context {

class StepPunctuation {
 public:
  void begin(const Batch& batch, const ContextOptions& options);

  /// Not 0 for punctuation, of each of the rows of a call that go to the stream; empty if the step has none, or the
  /// spec does not ask. Valid until the next call. Call it once as the layer stores the rows.
  std::span<const uint8_t> of(ContextLayer& layer, uint32_t stream, std::span<const uint32_t> rows);

 private:
  /// By stream, in the order in which it gets its tokens. A unified context has one stream.
  std::vector<std::vector<uint8_t>> by_stream_;
  bool unified_ = false;
  std::vector<uint8_t> found_;  ///< kept, so that a step allocates nothing
};

}  // namespace mikv::context
