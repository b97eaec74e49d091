// MemoryAccount: how many bytes some caches hold, and the most that they may.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "mikv/export.h"
namespace mikv {

/// Counts the memory of one context, or of several that share it, and refuses what goes beyond its limit. Every byte
/// of MemoryUsage::total() is charged before it is allocated, so that transient peaks count as well.
/// Threads: all functions may be called by several threads at once.
class MIKV_API MemoryAccount {
 public:
  MemoryAccount() = default;
  MemoryAccount(const MemoryAccount&) = delete;
  MemoryAccount& operator=(const MemoryAccount&) = delete;

  /// The most bytes that may be charged; 0: no limit. What is charged already stays.
  void set_limit(uint64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }
  uint64_t limit() const { return limit_.load(std::memory_order_relaxed); }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t peak() const { return peak_.load(std::memory_order_relaxed); }

  /// False, with nothing charged, if that goes beyond the limit.
  bool charge(uint64_t bytes) noexcept;
  void release(uint64_t bytes) noexcept { used_.fetch_sub(bytes, std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> used_{0}, peak_{0}, limit_{0};
};

}  // namespace mikv
