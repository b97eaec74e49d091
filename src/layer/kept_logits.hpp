// KeptLogits: the logits of scored tiers, kept until the softmax over all tiers is known.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/kernel_api.hpp"

namespace mikv::attention {

/// One memory, handed out to the scored tiers of a head one after the other: once to be written, once to be read.
class KeptLogits {
 public:
  struct Part {
    float* logits = nullptr;  ///< [rows][stride()]; until the next call of next()
    uint32_t n_blocks = 0;    ///< of those asked for, the first ones; whole strips, if it is not all
    size_t stride() const { return size_t{n_blocks} * kLanes; }
  };

  /// Starts with the first tier. most: logits that may be kept.
  void begin(uint32_t n_rows, size_t most = SIZE_MAX) {
    n_rows_ = n_rows;
    most_ = most;
    used_ = 0;
  }
  /// Memory for n_blocks of the next tier. May throw std::bad_alloc, if it was not there before.
  Part next(uint32_t n_blocks) {
    const size_t left = (most_ - used_) / (size_t{n_rows_} * kLanes);
    Part part;
    part.n_blocks = n_blocks <= left ? n_blocks : uint32_t(left / kStripBlocks * kStripBlocks);
    const size_t end = used_ + n_rows_ * part.stride();
    if (memory_.capacity() < end) memory_.reserve(std::min(most_, 2 * end));
    if (memory_.size() < end) memory_.resize(end);
    part.logits = memory_.data() + used_;
    used_ = end;
    return part;
  }

  uint64_t bytes() const { return memory_.capacity() * sizeof(float); }

 private:
  std::vector<float> memory_;
  uint32_t n_rows_ = 1;
  size_t most_ = 0, used_ = 0;
};

}  // namespace mikv::attention
