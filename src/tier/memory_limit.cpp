#include "tier/memory_limit.hpp"

#include <atomic>
#include <new>

#include "mikv/memory_limit.hpp"

namespace mikv {
namespace {

std::atomic<uint64_t> used{0}, most{0}, limit{UINT64_MAX};

}  // namespace

namespace tier {

void charge_memory(size_t bytes) {
  const uint64_t now = used.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (now > limit.load(std::memory_order_relaxed)) {
    used.fetch_sub(bytes, std::memory_order_relaxed);
    throw std::bad_alloc();
  }
  uint64_t seen = most.load(std::memory_order_relaxed);
  while (now > seen && !most.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
}

void uncharge_memory(size_t bytes) { used.fetch_sub(bytes, std::memory_order_relaxed); }

}  // namespace tier

void set_memory_limit(uint64_t bytes) { limit.store(bytes ? bytes : UINT64_MAX, std::memory_order_relaxed); }
uint64_t tier_bytes() { return used.load(std::memory_order_relaxed); }
uint64_t peak_tier_bytes() { return most.load(std::memory_order_relaxed); }

}  // namespace mikv
