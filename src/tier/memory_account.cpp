#include "mikv/memory_account.hpp"

namespace mikv {

bool MemoryAccount::charge(uint64_t bytes) noexcept {
  const uint64_t now = used_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  const uint64_t most = limit();
  if (most && now > most) {
    release(bytes);
    return false;
  }
  uint64_t seen = peak();
  while (now > seen && !peak_.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
  return true;
}

}  // namespace mikv
