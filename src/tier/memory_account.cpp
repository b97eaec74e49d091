#include "mikv/memory_account.hpp"

#include <algorithm>

namespace mikv {

bool MemoryAccount::hold(uint64_t bytes) noexcept {
  const uint64_t now = held_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  const uint64_t most = limit();
  if ((!most || now <= most) && (!whole_ || whole_->hold(bytes))) return true;
  held_.fetch_sub(bytes, std::memory_order_relaxed);
  return false;
}

void MemoryAccount::let_go(uint64_t bytes) noexcept {
  held_.fetch_sub(bytes, std::memory_order_relaxed);
  if (whole_) whole_->let_go(bytes);
}

void MemoryAccount::use(uint64_t bytes) noexcept {
  const uint64_t now = used_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  uint64_t seen = peak();
  while (now > seen && !peak_.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
  if (whole_) whole_->use(bytes);
}

uint64_t MemoryAccount::own_room() const {
  const uint64_t most = limit(), held = held_.load(std::memory_order_relaxed);
  return most ? most - std::min(most, held) : UINT64_MAX;
}

uint64_t MemoryAccount::room() const { return tightest().own_room(); }

const MemoryAccount& MemoryAccount::tightest() const {
  const MemoryAccount* tightest = this;
  for (const MemoryAccount* account = whole_.get(); account; account = account->whole_.get()) {
    if (account->own_room() < tightest->own_room()) tightest = account;
  }
  return *tightest;
}

bool MemoryAccount::charge(uint64_t bytes) noexcept {
  uint64_t reserved = reserved_.load(std::memory_order_relaxed), taken = std::min(reserved, bytes);
  while (!reserved_.compare_exchange_weak(reserved, reserved - taken, std::memory_order_relaxed)) {
    taken = std::min(reserved, bytes);
  }
  if (bytes > taken && !hold(bytes - taken)) {
    reserved_.fetch_add(taken, std::memory_order_relaxed);
    return false;
  }
  use(bytes);
  return true;
}

void MemoryAccount::release(uint64_t bytes) noexcept {
  for (MemoryAccount* account = this; account; account = account->whole_.get()) {
    account->used_.fetch_sub(bytes, std::memory_order_relaxed);
  }
  let_go(bytes);
}

bool MemoryAccount::reserve(uint64_t bytes) noexcept {
  end_reservation();
  if (!hold(bytes)) return false;
  reserved_.fetch_add(bytes, std::memory_order_relaxed);
  return true;
}

void MemoryAccount::end_reservation() noexcept { let_go(reserved_.exchange(0, std::memory_order_relaxed)); }

}  // namespace mikv
