// Tier: the tokens of one KV head in one format, in consecutive blocks. Always dense: removing a token moves the last
// one into its place. Order within a tier has no meaning, because RoPE is already in K.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "codec/block.hpp"
#include "mikv/memory_account.hpp"

namespace mikv::tier {

/// Frees memory of a Tier, from the heap or mapped, and releases it from the account.
struct FreeTierMemory {
  size_t bytes = 0;
  bool mapped = false;
  MemoryAccount* account = nullptr;
  void operator()(uint8_t* memory) const;
};

class Tier {
 public:
  /// `layout` and `account` are borrowed and outlive the tier: one layout serves the tiers of all heads.
  Tier(const codec::BlockLayout& layout, MemoryAccount& account) : layout_(&layout), account_(&account) {}
  /// The tokens of `other` in a tier of their own; `layout` may differ from other's in whether it is scored only.
  Tier(const Tier& other, const codec::BlockLayout& layout, MemoryAccount& account);
  /// The tokens in some slots of `other`, in their order.
  Tier(const Tier& other, std::span<const uint32_t> slots, MemoryAccount& account);
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;
  Tier(Tier&&) noexcept = default;
  Tier& operator=(Tier&&) noexcept = default;

  const codec::BlockLayout& layout() const { return *layout_; }
  uint32_t size() const { return n_tokens_; }
  uint32_t n_blocks() const { return uint32_t(codec::blocks_of(n_tokens_)); }
  const uint8_t* blocks() const { return blocks_.get(); }
  /// Bytes taken from the system, unused slots and rounding included.
  uint64_t allocated_bytes() const;

  uint8_t* block_of(uint32_t slot) { return blocks_.get() + size_t{slot / codec::kBlockTokens} * layout_->bytes; }
  const uint8_t* block_of(uint32_t slot) const { return const_cast<Tier*>(this)->block_of(slot); }
  static uint32_t lane_of(uint32_t slot) { return slot % codec::kBlockTokens; }

  uint32_t cell(uint32_t slot) const { return codec::block_id(block_of(slot), *layout_, lane_of(slot)); }
  void set_cell(uint32_t slot, uint32_t cell) { codec::set_block_id(block_of(slot), *layout_, lane_of(slot), cell); }
  /// 0 in a tier that is not scored. Sums of attention are not negative: a minus, also of 0, says that the token is
  /// punctuation.
  float score(uint32_t slot) const { return layout_->scored ? at<float>(slot, layout_->scores) : 0.0f; }
  uint32_t arrival(uint32_t slot) const { return layout_->scored ? at<uint32_t>(slot, layout_->arrivals) : 0; }
  /// All scores and arrivals, [size()] each; of a scored tier.
  void copy_ranking(float* scores, uint32_t* arrivals) const;
  /// No effect in a tier that is not scored.
  void set_score(uint32_t slot, float score, uint32_t arrival) {
    if (!layout_->scored) return;
    at<float>(slot, layout_->scores) = score;
    at<uint32_t>(slot, layout_->arrivals) = arrival;
  }
  void add_score(uint32_t slot, float more) {
    if (!layout_->scored) return;
    float& score = at<float>(slot, layout_->scores);
    score = std::copysign(std::abs(score) + more, score);
  }

  /// Names another account, which has been charged for allocated_bytes(), as the one that they are released from.
  void change_account(MemoryAccount& account) {
    account_ = &account;
    if (blocks_) blocks_.get_deleter().account = &account;
  }

  /// Makes room for n more tokens. May throw std::bad_alloc; nothing changes then. A tier that holds tokens grows by at
  /// least 1/32 of itself, or 1/128 and to a whole page once it is mapped, so that few steps have to grow.
  void reserve(uint32_t n_more);
  /// Bytes that reserve(n_more) takes from the system: for good, and until it returns.
  struct Growth {
    uint64_t lasting = 0, transient = 0;
  };
  /// in_parts: the most of both if they come in parts of any size, each with a reserve() of its own.
  Growth growth(uint32_t n_more, bool in_parts = false) const;
  /// Most bytes of a tier of n_blocks blocks that was reserved step by step.
  static uint64_t most_bytes(uint64_t block_bytes, uint64_t n_blocks);
  /// Most bytes that are there twice while a tier grows to so many.
  static uint64_t most_copied(uint64_t n_bytes);
  static uint64_t block_bytes(const codec::BlockLayout& layout);  ///< of a tier of one block
  /// Bytes of the tier with n tokens and no reserve.
  uint64_t bytes_of(uint32_t n) const;
  /// Adds n tokens with undefined payload; room must be reserved. Returns the first slot.
  uint32_t append(uint32_t n);
  void remove(uint32_t slot);  ///< not keys by channel
  /// Removes tokens of cells for which live(cell) is false; allocates nothing. Keys by channel: those of each block
  /// that loses tokens and gets others are encoded anew, once.
  template <typename Live>
  void keep(const Live& live) {
    if (layout_->keys_by_channel) return fill_holes(live);
    // Downwards: the token that a removal moves into a slot has been looked at already.
    for (uint32_t slot = n_tokens_; slot-- > 0;) {
      if (!live(cell(slot))) remove(slot);
    }
  }
  /// Empties the tier and gives its memory back, except a single block, which the next generated token needs.
  void release();
  /// Zeroes unused places. Kernels round the weights of a step by the largest of its scales, stale ones included: with
  /// them a loaded sequence would not continue bit for bit.
  void clear_unused();
  /// Gives back the memory of unused blocks, if the system has memory to move the others to. Needs no room of the
  /// account.
  void shrink();
  /// Encodes all tokens in `layout`, whose blocks are smaller, in place: memory stays what it was, until shrink().
  /// `layout` is borrowed as in the constructor, and scored as the present one. change: null, or called on each token's
  /// key. May throw std::bad_alloc; nothing changes then.
  void reencode(const codec::BlockLayout& layout, const std::function<void(float* k)>& change = {});

 private:
  using Memory = std::unique_ptr<uint8_t[], FreeTierMemory>;
  void free_all();
  void fill_holes(const std::function<bool(uint32_t cell)>& live);
  /// Number of blocks for n_more more tokens; capacity_blocks_ if there is room.
  uint64_t blocks_for(uint32_t n_more) const;
  /// Returns zeroed memory: kernels read whole blocks and mask unused lanes afterwards, so these must not be NaN.
  Memory allocate(size_t bytes) const;
  /// Resizes mapped memory without copying it: all heads of a cache grow in the same step, which must not wait for a
  /// copy of the whole cache. New memory is zero.
  void resize(Memory& memory, size_t bytes) const;

  template <typename T>
  T& at(uint32_t slot, size_t offset) {
    return reinterpret_cast<T*>(block_of(slot) + offset)[lane_of(slot)];
  }
  template <typename T>
  const T& at(uint32_t slot, size_t offset) const {
    return const_cast<Tier*>(this)->at<T>(slot, offset);
  }

  const codec::BlockLayout* layout_;
  MemoryAccount* account_;
  Memory blocks_;
  uint32_t n_tokens_ = 0;
  uint32_t capacity_blocks_ = 0;
};

}  // namespace mikv::tier
