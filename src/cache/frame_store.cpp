#include "cache/frame_store.hpp"

#include <algorithm>
#include <bit>

namespace mikv::cache {

void CellSet::reserve(uint32_t end) {
  const size_t words = (size_t{end} + 63) / 64;
  // A sixteenth in reserve, as in Tier: engines add cells one by one.
  if (words > words_.capacity()) words_.reserve(words + words / 16);
  if (words > words_.size()) words_.resize(words, 0);
}

FrameStore::FrameStore(const FrameStore& other, const Layouts& layouts, const Spec& spec)
    : live_(other.live_), n_live_(other.n_live_), next_arrival_(other.next_arrival_) {
  for (const HeadStore& head : other.heads_) heads_.emplace_back(head, layouts, spec);
}

FrameStore::FrameStore(std::vector<HeadStore> heads, CellSet live, uint32_t next_arrival)
    : heads_(std::move(heads)), live_(std::move(live)), next_arrival_(next_arrival) {
  for (const uint64_t word : live_.words()) n_live_ += uint64_t(std::popcount(word));
}

void FrameStore::renumber(std::span<const uint32_t> cells) {
  CellSet live;
  for (uint32_t i = 0; i < cells.size(); ++i) {
    if (!live_.contains(i)) continue;
    live.reserve(cells[i] + 1);
    live.insert(cells[i]);
  }
  for (HeadStore& head : heads_) {
    for (Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      for (uint32_t slot = 0; slot < tier->size(); ++slot) tier->set_cell(slot, cells[tier->cell(slot)]);
    }
  }
  live_ = std::move(live);
}

bool FrameStore::compressed() const {
  return std::any_of(heads_.begin(), heads_.end(), [](const HeadStore& head) { return head.compressed(); });
}

void FrameStore::stage(std::span<const uint32_t> cells) {
  n_last_staged_ = 0;
  if (cells.empty()) return;
  erase(cells);  // first: a sliding window overwrites as many tokens as it adds, and needs no more room
  live_.reserve(*std::max_element(cells.begin(), cells.end()) + 1);
  for (HeadStore& head : heads_) head.staged.reserve(uint32_t(cells.size()));
  for (HeadStore& head : heads_) {
    const uint32_t first = head.staged.append(uint32_t(cells.size()));
    for (uint32_t i = 0; i < cells.size(); ++i) {
      head.staged.set_cell(first + i, cells[i]);
      head.staged.set_score(first + i, 0.0f, next_arrival_ + i);
    }
  }
  for (const uint32_t cell : cells) live_.insert(cell);
  n_live_ += cells.size();
  next_arrival_ += uint32_t(cells.size());
  n_last_staged_ = uint32_t(cells.size());
}

void FrameStore::erase(std::span<const uint32_t> cells) {
  CellSet gone;
  uint64_t n_gone = 0;
  for (const uint32_t cell : cells) {
    if (!live_.contains(cell) || gone.contains(cell)) continue;
    gone.reserve(live_.end());
    gone.insert(cell);
    ++n_gone;
  }
  erase_live(gone, n_gone);
}

void FrameStore::erase_range(uint32_t first, uint32_t last) {
  CellSet gone;
  uint64_t n_gone = 0;
  gone.reserve(live_.end());
  for (uint32_t cell = first; cell < std::min(last, live_.end()); ++cell) {
    if (!live_.contains(cell)) continue;
    gone.insert(cell);
    ++n_gone;
  }
  erase_live(gone, n_gone);
}

void FrameStore::retain(std::span<const uint64_t> live) {
  CellSet gone;
  uint64_t n_gone = 0;
  const auto words = live_.words();
  for (uint32_t w = 0; w < words.size(); ++w) {
    for (uint64_t left = words[w] & ~(w < live.size() ? live[w] : 0); left; left &= left - 1) {
      gone.reserve(live_.end());
      gone.insert(w * 64 + uint32_t(std::countr_zero(left)));
      ++n_gone;
    }
  }
  erase_live(gone, n_gone);
}

void FrameStore::erase_live(const CellSet& gone, uint64_t n_gone) {
  if (n_gone == 0) return;
  for (HeadStore& head : heads_) {
    for (Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      // Downwards: the token that a removal moves into a slot has been looked at already.
      for (uint32_t slot = tier->size(); slot-- > 0;) {
        if (gone.contains(tier->cell(slot))) tier->remove(slot);
      }
    }
  }
  for (uint32_t cell = 0; cell < live_.end(); ++cell) {
    if (gone.contains(cell)) live_.remove(cell);
  }
  n_live_ -= n_gone;
}

}  // namespace mikv::cache
