// Tier: the tokens of one KV head in one format, in consecutive blocks. Always dense: removing a token moves the last
// one into its place, which is allowed because RoPE is already in K, so that order within a tier means nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "codec/block.hpp"
#include "mikv/memory_account.hpp"

namespace mikv::tier {

/// Frees what Tier allocated, from the heap or mapped, and takes it off its account.
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
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;
  Tier(Tier&&) noexcept = default;
  Tier& operator=(Tier&&) noexcept = default;

  const codec::BlockLayout& layout() const { return *layout_; }
  uint32_t size() const { return n_tokens_; }
  uint32_t n_blocks() const { return (n_tokens_ + codec::kBlockTokens - 1) / codec::kBlockTokens; }
  const uint8_t* blocks() const { return blocks_.get(); }
  /// What the tier takes from the system, unused slots and rounding included.
  uint64_t allocated_bytes() const;

  uint8_t* block_of(uint32_t slot) { return blocks_.get() + size_t{slot / codec::kBlockTokens} * layout_->bytes; }
  const uint8_t* block_of(uint32_t slot) const { return const_cast<Tier*>(this)->block_of(slot); }
  static uint32_t lane_of(uint32_t slot) { return slot % codec::kBlockTokens; }

  uint32_t cell(uint32_t slot) const { return codec::block_id(block_of(slot), *layout_, lane_of(slot)); }
  void set_cell(uint32_t slot, uint32_t cell) { codec::set_block_id(block_of(slot), *layout_, lane_of(slot), cell); }
  /// 0 in a tier that is not scored.
  float score(uint32_t slot) const { return layout_->scored ? at<float>(slot, layout_->scores) : 0.0f; }
  uint32_t arrival(uint32_t slot) const { return layout_->scored ? at<uint32_t>(slot, layout_->arrivals) : 0; }
  /// All scores and arrivals, [size()] each; of a scored tier.
  void copy_ranking(float* scores, uint32_t* arrivals) const;
  /// Nothing happens in a tier that is not scored.
  void set_score(uint32_t slot, float score, uint32_t arrival) {
    if (!layout_->scored) return;
    at<float>(slot, layout_->scores) = score;
    at<uint32_t>(slot, layout_->arrivals) = arrival;
  }
  void add_score(uint32_t slot, float more) {
    if (layout_->scored) at<float>(slot, layout_->scores) += more;
  }

  /// Makes room for n more tokens. May throw std::bad_alloc; nothing changes then. A tier that already holds tokens
  /// grows by 1/32 of itself at least, or, from where it is mapped, by 1/128 and to a whole page, so that few steps
  /// have to grow.
  void reserve(uint32_t n_more);
  /// Bytes that reserve(n_more) would take from the system, and those that it would give back only afterwards.
  struct Growth {
    uint64_t lasting = 0, transient = 0;
  };
  Growth growth(uint32_t n_more) const;
  /// What a tier of n_blocks blocks, reserved some at a time, takes from the system at most.
  static uint64_t most_bytes(uint64_t block_bytes, uint32_t n_blocks);
  /// What the tier takes when it holds n tokens and no reserve.
  uint64_t bytes_of(uint32_t n) const;
  /// Adds n tokens with undefined payload; room must be reserved. Returns the first slot.
  uint32_t append(uint32_t n);
  void remove(uint32_t slot);
  /// Empties the tier and gives its memory back; a single block stays, as the next generated token wants it again.
  void release();
  /// Zeroes unused places. Kernels round a step's weights by the largest of its scales, stale ones included: with them
  /// a sequence would not go on to the bit once it was saved and loaded.
  void clear_unused();
  /// Gives back the memory of unused blocks, all of them if there are no tokens, where there is memory to move the
  /// others to.
  void shrink();
  /// Encodes all tokens anew in `layout`, whose blocks are smaller, in place: at no time is there more memory than
  /// before. `layout` is borrowed as in the constructor, and scored as the present one. change: null, or what becomes
  /// of a token's key. May throw std::bad_alloc; nothing changes then.
  void reencode(const codec::BlockLayout& layout, const std::function<void(float* k)>& change = {});

 private:
  using Memory = std::unique_ptr<uint8_t[], FreeTierMemory>;
  void free_all();
  /// Blocks to have when n_more tokens come; capacity_blocks_ if there is room.
  uint64_t blocks_for(uint32_t n_more) const;
  /// Zeroed: kernels read whole blocks and mask unused lanes afterwards, so they must find numbers there, not NaN.
  Memory allocate(size_t bytes) const;
  /// Makes mapped memory larger or smaller without copying it: all heads of a cache grow in the same step, which must
  /// not wait for the whole cache to be copied. What is new is zero.
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
