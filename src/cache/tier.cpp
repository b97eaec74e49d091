#include "cache/tier.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace mikv::cache {

Tier::Memory Tier::allocate(size_t bytes) {
  // 64-byte alignment lets a kernel load whole cache lines; block sizes are multiples of 32.
  const size_t rounded = (bytes + 63) / 64 * 64;
  Memory memory(static_cast<uint8_t*>(std::aligned_alloc(64, rounded)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

Tier::Tier(const Tier& other, const codec::BlockLayout& layout) : layout_(&layout) {
  if (other.n_tokens_ == 0) return;
  reserve(other.n_tokens_);
  const codec::BlockLayout& from = *other.layout_;
  for (uint32_t block = 0; block < other.n_blocks(); ++block) {
    const uint8_t* source = other.blocks_.get() + block * from.bytes;
    uint8_t* target = blocks_.get() + block * layout.bytes;
    std::memcpy(target, source, layout.scores);  // the ids stand before the scores
    if (layout.scored && from.scored) std::memcpy(target + layout.scores, source + from.scores, layout.scales_k - layout.scores);
    std::memcpy(target + layout.scales_k, source + from.scales_k, layout.bytes - layout.scales_k);
  }
  n_tokens_ = other.n_tokens_;
}

void Tier::reserve(uint32_t n_more) {
  const uint64_t needed = (uint64_t{n_tokens_} + n_more + codec::kBlockTokens - 1) / codec::kBlockTokens;
  if (needed <= capacity_blocks_) return;
  const uint64_t growth = n_tokens_ ? capacity_blocks_ / 16 : 0;
  const uint64_t capacity = std::max<uint64_t>(needed, capacity_blocks_ + growth);
  Memory memory = allocate(size_t(capacity) * layout_->bytes);
  const size_t used = size_t{n_blocks()} * layout_->bytes;
  if (used) std::memcpy(memory.get(), blocks_.get(), used);
  // Kernels read whole blocks and mask unused lanes afterwards: they must find numbers there, not NaN.
  std::memset(memory.get() + used, 0, size_t(capacity) * layout_->bytes - used);
  blocks_ = std::move(memory);
  capacity_blocks_ = uint32_t(capacity);
}

uint32_t Tier::append(uint32_t n) {
  const uint32_t first = n_tokens_;
  n_tokens_ += n;
  return first;
}

void Tier::remove(uint32_t slot) {
  const uint32_t last = n_tokens_ - 1;
  if (slot != last) codec::copy_token(block_of(last), lane_of(last), block_of(slot), lane_of(slot), *layout_);
  --n_tokens_;
}

void Tier::release() {
  blocks_.reset();
  n_tokens_ = 0;
  capacity_blocks_ = 0;
}

}  // namespace mikv::cache
