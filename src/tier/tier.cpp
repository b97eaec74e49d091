#include "tier/tier.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "codec/transform.hpp"

namespace mikv::tier {

namespace {

// From this size on, memory is mapped: freeing it gives it back to the system at once, where the heap would keep it.
// That is what makes a compressed prompt's memory really smaller. At most 3 % of it is rounding to pages.
constexpr size_t kMapFrom = size_t{128} << 10;
constexpr size_t kPage = 4096;
constexpr size_t kLine = 64;  // kernels load whole cache lines

// Of each token an id, a score and an arrival, and of each channel of K and V a code of a byte with a scale and a zero
// of its own (group=1): no element takes more.
constexpr size_t kMostBlockBytes = codec::kBlockTokens * (3 * 4 + 2 * codec::kMaxHeadDim * (1 + 4));

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Of so many blocks or bytes. What mapped memory grows by is not copied, so it may be little.
constexpr uint64_t reserve_of(uint64_t n, bool mapped) { return n / (mapped ? 128 : 32); }

}  // namespace

void FreeTierMemory::operator()(uint8_t* memory) const {
  if (mapped) {
    munmap(memory, bytes);
  } else {
    std::free(memory);
  }
  account->release(bytes);
}

Tier::Memory Tier::allocate(size_t bytes) const {
  const bool mapped = bytes >= kMapFrom;
  const size_t rounded = round_up(bytes, mapped ? kPage : kLine);
  if (!account_->charge(rounded)) throw std::bad_alloc();
  void* memory = mapped ? mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                        : std::aligned_alloc(kLine, rounded);
  if (memory == MAP_FAILED || !memory) {
    account_->release(rounded);
    throw std::bad_alloc();
  }
  if (!mapped) std::memset(memory, 0, rounded);
  return Memory(static_cast<uint8_t*>(memory), FreeTierMemory{rounded, mapped, account_});
}

void Tier::resize(Memory& memory, size_t bytes) const {
  const size_t before = memory.get_deleter().bytes, after = round_up(bytes, kPage);
#ifdef __SANITIZE_THREAD__
  // The thread sanitizer does not see mremap(): what another head reads next at the old address would look like a race.
  Memory copy = allocate(std::max(after, kMapFrom));
  std::memcpy(copy.get(), memory.get(), std::min(before, after));
  memory = std::move(copy);
  return;
#endif
  if (after > before && !account_->charge(after - before)) throw std::bad_alloc();
  void* moved = mremap(memory.get(), before, after, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) {
    if (after > before) account_->release(after - before);
    throw std::bad_alloc();
  }
  if (after < before) account_->release(before - after);
  (void)memory.release();
  memory = Memory(static_cast<uint8_t*>(moved), FreeTierMemory{after, true, account_});
}

uint64_t Tier::allocated_bytes() const { return blocks_ ? blocks_.get_deleter().bytes : 0; }

Tier::Tier(const Tier& other, const codec::BlockLayout& layout, MemoryAccount& account) : Tier(layout, account) {
  if (other.n_tokens_ == 0) return;
  reserve(other.n_tokens_);
  const codec::BlockLayout& from = *other.layout_;
  for (uint32_t block = 0; block < other.n_blocks(); ++block) {
    const uint8_t* source = other.blocks_.get() + block * from.bytes;
    uint8_t* target = blocks_.get() + block * layout.bytes;
    std::memcpy(target, source, layout.scores);  // the ids stand before the scores
    if (layout.scored && from.scored)
      std::memcpy(target + layout.scores, source + from.scores, layout.scales_k - layout.scores);
    std::memcpy(target + layout.scales_k, source + from.scales_k, layout.bytes - layout.scales_k);
  }
  n_tokens_ = other.n_tokens_;
}

Tier::Tier(const Tier& other, std::span<const uint32_t> slots, MemoryAccount& account) : Tier(*other.layout_, account) {
  reserve(uint32_t(slots.size()));
  std::array<codec::TokenAt, codec::kBlockTokens> tokens;
  for (size_t first = 0; first < slots.size(); first += codec::kBlockTokens) {
    const size_t n = std::min<size_t>(codec::kBlockTokens, slots.size() - first);
    for (size_t i = 0; i < n; ++i) tokens[i] = {other.block_of(slots[first + i]), lane_of(slots[first + i])};
    codec::gather_tokens(std::span(tokens).first(n), block_of(append(uint32_t(n))), *layout_);
  }
}

void Tier::copy_ranking(float* scores, uint32_t* arrivals) const {
  for (uint32_t slot = 0; slot < n_tokens_; slot += codec::kBlockTokens) {
    const uint32_t n = std::min(n_tokens_ - slot, codec::kBlockTokens);
    std::memcpy(scores + slot, block_of(slot) + layout_->scores, n * sizeof *scores);
    std::memcpy(arrivals + slot, block_of(slot) + layout_->arrivals, n * sizeof *arrivals);
  }
}

uint64_t Tier::blocks_for(uint32_t n_more) const {
  const uint64_t needed = codec::blocks_of(uint64_t{n_tokens_} + n_more);
  if (needed <= capacity_blocks_) return capacity_blocks_;
  const uint64_t reserve = n_tokens_ ? reserve_of(capacity_blocks_, blocks_.get_deleter().mapped) : 0;
  const uint64_t blocks = std::max<uint64_t>(needed, capacity_blocks_ + reserve), bytes = blocks * layout_->bytes;
  return bytes >= kMapFrom ? round_up(bytes, kPage) / layout_->bytes : blocks;
}

Tier::Growth Tier::growth(uint32_t n_more, bool in_parts) const {
  const uint64_t blocks = blocks_for(n_more), before = allocated_bytes();
  if (blocks == capacity_blocks_) return {};
  const bool mapped = blocks_.get_deleter().mapped, will_map = mapped || blocks * layout_->bytes >= kMapFrom;
  const uint64_t bytes = round_up(blocks * layout_->bytes, will_map ? kPage : kLine);
  Growth growth{bytes - std::min(bytes, before), blocks_ && !mapped ? before : 0};
  if (!in_parts || n_more < 2) return growth;
  const uint64_t n_blocks = codec::blocks_of(uint64_t{n_tokens_} + n_more);
  const uint64_t most = most_bytes(layout_->bytes, n_blocks);
  growth.lasting = std::max(growth.lasting, most - std::min(most, before));
  // The last part copies what the parts before it have.
  if (!mapped) growth.transient = std::max(growth.transient, most_copied(most));
  return growth;
}

uint64_t Tier::bytes_of(uint32_t n) const {
  const uint64_t bytes = codec::blocks_of(n) * layout_->bytes;
  return round_up(bytes, blocks_.get_deleter().mapped || bytes >= kMapFrom ? kPage : kLine);
}

uint64_t Tier::block_bytes(const codec::BlockLayout& layout) { return round_up(layout.bytes, kLine); }

uint64_t Tier::most_bytes(uint64_t block_bytes, uint64_t n_blocks) {
  const uint64_t bytes = n_blocks * block_bytes;
  const uint64_t reserve =
      std::max(reserve_of(std::min<uint64_t>(bytes, kMapFrom), false), reserve_of(bytes, true)) + block_bytes;
  return round_up(bytes + reserve, bytes + reserve >= kMapFrom ? kPage : kLine);
}

uint64_t Tier::most_copied(uint64_t n_bytes) { return std::min<uint64_t>(n_bytes, kMapFrom); }  // else it is mapped

void Tier::reserve(uint32_t n_more) {
  const uint64_t capacity = blocks_for(n_more);
  if (capacity == capacity_blocks_) return;
  const size_t bytes = size_t(capacity) * layout_->bytes;
  if (blocks_.get_deleter().mapped) {
    resize(blocks_, bytes);
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
  assert(!layout_->keys_by_channel);
  if (slot != last) codec::copy_token(block_of(last), lane_of(last), block_of(slot), lane_of(slot), *layout_);
  --n_tokens_;
}

// Block by block, from the first: tokens of the last ones take the places of those that leave.
void Tier::fill_holes(const std::function<bool(uint32_t cell)>& live) {
  std::array<codec::TokenAt, codec::kBlockTokens> tokens;
  uint32_t end = n_tokens_;  // from here on tokens have been moved, or leave
  for (uint32_t first = 0; first < end; first += codec::kBlockTokens) {
    uint32_t n = 0;
    for (uint32_t slot = first; slot < end && n < codec::kBlockTokens; ++slot, ++n) {
      uint32_t from = slot;
      if (!live(cell(slot))) {
        do {
          from = --end;
        } while (from > slot && !live(cell(from)));
        if (from == slot) break;
      }
      tokens[n] = {block_of(from), lane_of(from)};
    }
    codec::gather_tokens(std::span(tokens).first(n), block_of(first), *layout_);
  }
  n_tokens_ = end;
}

void Tier::release() {
  n_tokens_ = 0;
  if (capacity_blocks_ > 1) free_all();
}

void Tier::free_all() {
  blocks_ = Memory();  // with its deleter's size
  capacity_blocks_ = 0;
}

void Tier::shrink() {
  if (n_tokens_ == 0) return free_all();
  const size_t bytes = size_t{n_blocks()} * layout_->bytes;
  if (round_up(bytes, kPage) >= allocated_bytes()) return;
  if (blocks_.get_deleter().mapped) {
    try {
      resize(blocks_, bytes);
    } catch (const std::bad_alloc&) {
      return;  // it stays as large as it is
    }
  } else {
    // A copy of less than kMapFrom that is charged as a part of what it replaces: where there is no room, making a tier
    // smaller must still be possible.
    const size_t rounded = round_up(bytes, kLine);
    auto* memory = static_cast<uint8_t*>(std::aligned_alloc(kLine, rounded));
    if (!memory) return;
    std::memcpy(memory, blocks_.get(), bytes);
    std::memset(memory + bytes, 0, rounded - bytes);
    blocks_.get_deleter().bytes -= rounded;
    blocks_ = Memory(memory, FreeTierMemory{rounded, false, account_});
  }
  capacity_blocks_ = uint32_t(allocated_bytes() / layout_->bytes);
}

void Tier::clear_unused() {
  if (!blocks_) return;
  static constexpr std::array<uint8_t, kMostBlockBytes> kEmptyBlock{};
  assert(layout_->bytes <= kEmptyBlock.size());
  for (uint32_t slot = n_tokens_; slot < n_blocks() * codec::kBlockTokens; ++slot) {
    codec::copy_token(kEmptyBlock.data(), 0, block_of(slot), lane_of(slot), *layout_);
  }
  const size_t written = size_t{n_blocks()} * layout_->bytes;
  std::memset(blocks_.get() + written, 0, blocks_.get_deleter().bytes - written);
}

void Tier::reencode(const codec::BlockLayout& layout, const std::function<void(float* k)>& change) {
  const uint32_t dim_k = layout.dim_k, dim_v = layout.dim_v;
  std::vector<float> k(size_t{codec::kBlockTokens} * dim_k), v(size_t{codec::kBlockTokens} * dim_v);
  std::vector<uint8_t> next(layout.bytes);
  std::array<uint32_t, codec::kBlockTokens> ids;
  const bool together = layout.mixed() && codec::encodes_together();
  std::vector<uint8_t> ranking(layout.scored ? layout.scales_k - layout.scores : 0);
  for (uint32_t block = 0; block < n_blocks(); ++block) {
    const uint32_t used = std::min(codec::kBlockTokens, n_tokens_ - block * codec::kBlockTokens);
    const uint8_t* from = blocks_.get() + block * layout_->bytes;
    for (uint32_t lane = 0; lane < used; ++lane) {
      ids[lane] = codec::block_id(from, *layout_, lane);
      codec::decode_token(from, *layout_, lane, &k[size_t{lane} * dim_k], &v[size_t{lane} * dim_v]);
      if (change) change(&k[size_t{lane} * dim_k]);
    }
    std::copy_n(from + layout_->scores, ranking.size(), ranking.begin());
    std::fill(next.begin(), next.end(), uint8_t{0});
    std::copy(ranking.begin(), ranking.end(), next.begin() + std::ptrdiff_t(layout.scores));
    for (uint32_t lane = 0; lane < used; ++lane) codec::set_block_id(next.data(), layout, lane, ids[lane]);
    if (layout.keys_by_channel) {
      codec::add_tokens(next.data(), layout, 0, used, k.data(), v.data());
    } else if (together) {
      codec::encode_tokens(next.data(), layout, {}, 0, used, k.data(), v.data());
    } else {
      for (uint32_t lane = 0; lane < used; ++lane) {
        codec::encode_token(next.data(), layout, lane, &k[size_t{lane} * dim_k], &v[size_t{lane} * dim_v]);
      }
    }
    std::memcpy(blocks_.get() + block * layout.bytes, next.data(), layout.bytes);
  }
  capacity_blocks_ = uint32_t(blocks_ ? blocks_.get_deleter().bytes / layout.bytes : 0);
  layout_ = &layout;
  clear_unused();  // what held larger blocks holds more of the smaller ones, in which kernels must find numbers (see
                   // allocate())
}

}  // namespace mikv::tier
