#include "cache/tier.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace mikv::cache {

namespace {

// From this size on, memory is mapped: freeing it gives it back to the system at once, where the heap would keep it.
// That is what makes a compressed prompt's memory really smaller. At most 3 % of it is rounding to pages.
constexpr size_t kMapFrom = size_t{128} << 10;
constexpr size_t kPage = 4096;
constexpr size_t kLine = 64;  // kernels load whole cache lines

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

void FreeTierMemory::operator()(uint8_t* memory) const {
  if (mapped_bytes) {
    munmap(memory, mapped_bytes);
  } else {
    std::free(memory);
  }
}

Tier::Memory Tier::allocate(size_t bytes) {
  if (bytes < kMapFrom) {
    Memory memory(static_cast<uint8_t*>(std::aligned_alloc(kLine, round_up(bytes, kLine))));
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 0, bytes);
    return memory;
  }
  const size_t mapped = round_up(bytes, kPage);
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return Memory(static_cast<uint8_t*>(memory), FreeTierMemory{mapped});
}

void Tier::grow(Memory& memory, size_t bytes) {
  const size_t mapped = round_up(bytes, kPage);
#ifdef __SANITIZE_THREAD__
  // The thread sanitizer does not see mremap(): what another head reads next at the old address would look like a race.
  Memory copy = allocate(bytes);
  std::memcpy(copy.get(), memory.get(), memory.get_deleter().mapped_bytes);
  memory = std::move(copy);
  return;
#endif
  void* moved = mremap(memory.get(), memory.get_deleter().mapped_bytes, mapped, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) throw std::bad_alloc();
  (void)memory.release();
  memory = Memory(static_cast<uint8_t*>(moved), FreeTierMemory{mapped});
}

uint64_t Tier::allocated_bytes() const {
  const uint64_t bytes = uint64_t{capacity_blocks_} * layout_->bytes;
  return round_up(bytes, bytes < kMapFrom ? kLine : kPage);
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

void Tier::copy_ranking(float* scores, uint32_t* arrivals) const {
  for (uint32_t slot = 0; slot < n_tokens_; slot += codec::kBlockTokens) {
    const uint32_t n = std::min(n_tokens_ - slot, codec::kBlockTokens);
    std::memcpy(scores + slot, block_of(slot) + layout_->scores, n * sizeof *scores);
    std::memcpy(arrivals + slot, block_of(slot) + layout_->arrivals, n * sizeof *arrivals);
  }
}

void Tier::reserve(uint32_t n_more) {
  const uint64_t needed = (uint64_t{n_tokens_} + n_more + codec::kBlockTokens - 1) / codec::kBlockTokens;
  if (needed <= capacity_blocks_) return;
  const uint64_t growth = n_tokens_ ? capacity_blocks_ / 16 : 0;
  const uint64_t capacity = std::max<uint64_t>(needed, capacity_blocks_ + growth);
  const size_t bytes = size_t(capacity) * layout_->bytes;
  if (blocks_.get_deleter().mapped_bytes) {
    grow(blocks_, bytes);
  } else {
    Memory memory = allocate(bytes);
    if (n_tokens_) std::memcpy(memory.get(), blocks_.get(), size_t{n_blocks()} * layout_->bytes);
    blocks_ = std::move(memory);
  }
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
  n_tokens_ = 0;
  if (capacity_blocks_ <= 1) return;
  blocks_ = Memory();  // with its deleter's size
  capacity_blocks_ = 0;
}

}  // namespace mikv::cache
