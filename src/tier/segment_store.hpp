// SegmentStore: one segment of a layer: the cells that live in it, and what each KV head holds of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "mikv/result.hpp"
#include "tier/head_store.hpp"

namespace mikv::tier {

/// A set of cells as a bitmap that grows with the highest cell.
class CellSet {
 public:
  CellSet() = default;
  explicit CellSet(std::vector<uint64_t> words) : words_(std::move(words)) {}
  bool contains(uint32_t cell) const { return cell / 64 < words_.size() && (words_[cell / 64] >> (cell % 64) & 1); }
  void insert(uint32_t cell) { words_[cell / 64] |= uint64_t{1} << (cell % 64); }
  bool remove(uint32_t cell);  ///< false if it was not in the set
  /// Removes cells that are not in `words`; returns their number.
  uint64_t keep(std::span<const uint64_t> words);
  /// Makes room for cells below `end`; may throw std::bad_alloc.
  void reserve(uint32_t end);
  /// Most bytes of a set of cells below `end` that was reserved step by step.
  static uint64_t most_bytes(uint32_t end) {
    const uint64_t words = (uint64_t{end} + 63) / 64;
    return (words + words / 16) * sizeof(uint64_t);
  }
  uint32_t end() const { return uint32_t(words_.size() * 64); }
  /// Bit c % 64 of word c / 64 is cell c.
  std::span<const uint64_t> words() const { return words_; }
  uint64_t bytes() const { return words_.capacity() * sizeof(uint64_t); }

 private:
  std::vector<uint64_t> words_;
};

class SegmentStore {
 public:
  /// An empty one of n_heads KV heads, held as `spec` says. The account outlives the segment.
  SegmentStore(uint32_t n_heads, std::shared_ptr<const Layouts> layouts, const Spec& spec, MemoryAccount& account);
  /// The staged tokens of `other` under other layouts (LayerCache::clone).
  SegmentStore(const SegmentStore& other, std::shared_ptr<const Layouts> layouts, const Spec& spec,
               MemoryAccount& account);
  /// Makes an empty one a loaded one; every head's tiers hold cells of `live` only. May throw std::bad_alloc.
  void set_loaded(CellSet live, uint32_t next_arrival);

  /// How the segment holds its tokens. It may be less than the layer's other segments have: a budget lowers segments
  /// (LayerCache::lower), and a loaded one is as it was saved.
  const Spec& spec() const { return spec_; }
  void set_spec(const Spec& spec) { spec_ = spec; }
  const Layouts& layouts() const { return *layouts_; }

  uint64_t charged_bytes() const;
  /// Moves all charges to another account. May throw std::bad_alloc, where that has no room; nothing changes then.
  void move_to(MemoryAccount& account);

  /// Charges what is not in tiers. May throw std::bad_alloc where it grew.
  void recount();
  /// Bytes beside the heads' tiers and calibrations.
  uint64_t own_bytes() const { return sizeof(SegmentStore) + heads_.capacity() * sizeof(HeadStore) + live_.bytes(); }

  std::vector<HeadStore>& heads() { return heads_; }
  const std::vector<HeadStore>& heads() const { return heads_; }
  const CellSet& live() const { return live_; }
  uint64_t n_live() const { return n_live_; }
  uint32_t n_last_staged() const { return n_last_staged_; }
  uint32_t next_arrival() const { return next_arrival_; }
  bool compressed() const;
  bool staged_in_bytes() const;
  void trim() {
    for (HeadStore& head : heads_) head.trim();
  }
  /// See LayerCache::stage_in_bytes().
  void stage_in_bytes();

  /// Renames cell i to cells[i]. May throw std::bad_alloc; nothing changes then.
  void renumber(std::span<const uint32_t> cells);

  /// Replaces what `cells` held by n undefined staged tokens at the end of every head's staged tier.
  /// May throw std::bad_alloc; the cells hold nothing then. Cells are valid and distinct.
  void stage(std::span<const uint32_t> cells, std::span<const uint8_t> punctuation = {});
  /// Erasing allocates nothing and gives no memory back: the owner drops a segment without cells.
  void erase(std::span<const uint32_t> cells);
  void erase_range(uint32_t first, uint32_t last);
  /// Erases cells that are not in `live`, a bitmap as CellSet::words().
  void retain(std::span<const uint64_t> live);

 private:
  void set_balancers();
  /// Removes the tokens of n_gone cells that are no longer in live_.
  void forget_dead(uint64_t n_gone);

  std::shared_ptr<const Layouts> layouts_;  ///< the heads' tiers borrow them
  Spec spec_;
  MemoryAccount* account_;
  std::vector<HeadStore> heads_;
  CellSet live_;
  Charge charge_;  ///< of own_bytes()
  uint64_t n_live_ = 0;
  uint32_t n_last_staged_ = 0;  ///< of the last stage(): the last slots of every head's staged tier
  uint32_t next_arrival_ = 0;
};

}  // namespace mikv::tier
