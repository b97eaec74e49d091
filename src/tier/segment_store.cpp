#include "tier/segment_store.hpp"

#include <algorithm>
#include <bit>
#include <new>

namespace mikv::tier {

void CellSet::reserve(uint32_t end) {
  const size_t words = (size_t{end} + 63) / 64;
  // A sixteenth in reserve: engines add cells one by one.
  if (words > words_.capacity()) words_.reserve(words + words / 16);
  if (words > words_.size()) words_.resize(words, 0);
}

bool CellSet::remove(uint32_t cell) {
  if (!contains(cell)) return false;
  words_[cell / 64] &= ~(uint64_t{1} << (cell % 64));
  return true;
}

uint64_t CellSet::keep(std::span<const uint64_t> words) {
  uint64_t n_gone = 0;
  for (size_t w = 0; w < words_.size(); ++w) {
    const uint64_t gone = words_[w] & ~(w < words.size() ? words[w] : 0);
    words_[w] ^= gone;
    n_gone += uint64_t(std::popcount(gone));
  }
  return n_gone;
}

SegmentStore::SegmentStore(uint32_t n_heads, std::shared_ptr<const Layouts> layouts, const Spec& spec,
                           MemoryAccount& account)
    : layouts_(std::move(layouts)), spec_(spec), account_(&account), charge_(&account) {
  heads_.reserve(n_heads);
  for (uint32_t h = 0; h < n_heads; ++h) heads_.emplace_back(*layouts_, spec_, account);
  set_balancers();
}

SegmentStore::SegmentStore(const SegmentStore& other, std::shared_ptr<const Layouts> layouts, const Spec& spec,
                           MemoryAccount& account)
    : layouts_(std::move(layouts)),
      spec_(spec),
      account_(&account),
      live_(other.live_),
      charge_(&account),
      n_live_(other.n_live_),
      next_arrival_(other.next_arrival_) {
  heads_.reserve(other.heads_.size());
  for (const HeadStore& head : other.heads_) heads_.emplace_back(head, *layouts_, spec_, account);
  set_balancers();
  recount();
}

void SegmentStore::set_balancers() {
  for (size_t h = 0; h < layouts_->balancers.size(); ++h) heads_[h].transform.key.balancer = layouts_->balancers[h];
}

void SegmentStore::set_loaded(CellSet live, uint32_t next_arrival) {
  live_ = std::move(live);
  next_arrival_ = next_arrival;
  for (const uint64_t word : live_.words()) n_live_ += uint64_t(std::popcount(word));
  recount();
}

uint64_t SegmentStore::charged_bytes() const {
  uint64_t bytes = charge_.bytes();
  for (const HeadStore& head : heads_) bytes += head.charged_bytes();
  return bytes;
}

void SegmentStore::move_to(MemoryAccount& account) {
  const uint64_t bytes = charged_bytes();
  if (!account.charge(bytes)) throw std::bad_alloc();
  account_->release(bytes);
  charge_.change_account(account);
  for (HeadStore& head : heads_) head.change_account(account);
  account_ = &account;
}

void SegmentStore::recount() {
  charge_.set(own_bytes());
  for (HeadStore& head : heads_) head.recount();
}

void SegmentStore::renumber(std::span<const uint32_t> cells) {
  CellSet live;
  for (uint32_t i = 0; i < cells.size(); ++i) {
    if (!live_.contains(i)) continue;
    live.reserve(cells[i] + 1);
    live.insert(cells[i]);
  }
  charge_.set(own_bytes() - live_.bytes() + live.bytes());
  for (HeadStore& head : heads_) {
    for (Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      for (uint32_t slot = 0; slot < tier->size(); ++slot) tier->set_cell(slot, cells[tier->cell(slot)]);
    }
  }
  live_ = std::move(live);
}

bool SegmentStore::compressed() const {
  return std::any_of(heads_.begin(), heads_.end(), [](const HeadStore& head) { return head.compressed(); });
}

bool SegmentStore::staged_in_bytes() const { return std::ranges::any_of(heads_, &HeadStore::staged_in_bytes); }

void SegmentStore::stage_in_bytes() {
  try {
    for (HeadStore& head : heads_) head.stage_in_bytes(*layouts_, spec_.hadamard);
  } catch (const std::bad_alloc&) {  // the others stay in f16
  }
}

void SegmentStore::stage(std::span<const uint32_t> cells, std::span<const uint8_t> punctuation) {
  n_last_staged_ = 0;
  if (cells.empty()) return;
  erase(cells);  // first: a sliding window overwrites as many tokens as it adds, and needs no more room
  live_.reserve(*std::max_element(cells.begin(), cells.end()) + 1);
  charge_.set(own_bytes());
  if (layouts_->positions->record_from && next_arrival_ + cells.size() >= layouts_->positions->record_from) {
    for (HeadStore& head : heads_) {
      head.record(*layouts_, spec_);
      head.recount();
    }
  }
  for (HeadStore& head : heads_) head.staged.reserve(uint32_t(cells.size()));
  for (HeadStore& head : heads_) {
    const uint32_t first = head.staged.append(uint32_t(cells.size()));
    for (uint32_t i = 0; i < cells.size(); ++i) {
      head.staged.set_cell(first + i, cells[i]);
      head.staged.set_score(first + i, i < punctuation.size() && punctuation[i] ? -0.0f : 0.0f, next_arrival_ + i);
    }
  }
  for (const uint32_t cell : cells) live_.insert(cell);
  n_live_ += cells.size();
  next_arrival_ += uint32_t(cells.size());
  n_last_staged_ = uint32_t(cells.size());
}

void SegmentStore::erase(std::span<const uint32_t> cells) {
  uint64_t n_gone = 0;
  for (const uint32_t cell : cells) n_gone += live_.remove(cell);
  forget_dead(n_gone);
}

void SegmentStore::erase_range(uint32_t first, uint32_t last) {
  uint64_t n_gone = 0;
  for (uint32_t cell = first; cell < std::min(last, live_.end()); ++cell) n_gone += live_.remove(cell);
  forget_dead(n_gone);
}

void SegmentStore::retain(std::span<const uint64_t> live) { forget_dead(live_.keep(live)); }

void SegmentStore::forget_dead(uint64_t n_gone) {
  if (n_gone == 0) return;
  for (HeadStore& head : heads_) {
    for (Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      tier->keep([this](uint32_t cell) { return live_.contains(cell); });
    }
  }
  n_live_ -= n_gone;
}

}  // namespace mikv::tier
