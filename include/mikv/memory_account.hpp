// MemoryAccount: how many bytes a cache holds, and their limit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "mikv/export.h"

namespace mikv {

/// Counts bytes and refuses what exceeds a limit. Every byte of MemoryUsage::total() is charged before it is allocated,
/// so transient peaks count as well. A step reserves what it needs first; charges then take from that.
/// An account may be part of another one: so several contexts share a budget, and each has its own figures.
/// Threads: all functions may be called by several threads at once.
class MIKV_API MemoryAccount {
 public:
  /// whole: the account that this one is part of, or null.
  explicit MemoryAccount(std::shared_ptr<MemoryAccount> whole = nullptr) : whole_(std::move(whole)) {}
  MemoryAccount(const MemoryAccount&) = delete;
  MemoryAccount& operator=(const MemoryAccount&) = delete;
  ~MemoryAccount() { end_reservation(); }

  /// Most bytes that may be held, with all parts; 0: no limit. What is held already stays.
  void set_limit(uint64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }
  uint64_t limit() const { return limit_.load(std::memory_order_relaxed); }
  /// Bytes that are charged, with all parts.
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  /// Largest value of used() so far.
  uint64_t peak() const { return peak_.load(std::memory_order_relaxed); }
  /// Bytes that may be held beyond what is used or reserved, by the nearest limit; UINT64_MAX without one.
  uint64_t room() const;
  /// The account, this one or one that it is part of, whose limit room() goes by; this one without a limit.
  const MemoryAccount& tightest() const;

  /// Returns false, with nothing charged, if that exceeds a limit.
  bool charge(uint64_t bytes) noexcept;
  void release(uint64_t bytes) noexcept;

  /// Holds bytes for later charges, in place of what was reserved before. Returns false, with nothing reserved, if
  /// there is no room for them.
  bool reserve(uint64_t bytes) noexcept;
  /// Frees what charges have not taken.
  void end_reservation() noexcept;

 private:
  uint64_t own_room() const;  ///< by this account's limit alone
  bool hold(uint64_t bytes) noexcept;
  void use(uint64_t bytes) noexcept;
  void let_go(uint64_t bytes) noexcept;

  std::shared_ptr<MemoryAccount> whole_;
  std::atomic<uint64_t> used_{0}, peak_{0}, limit_{0};
  std::atomic<uint64_t> held_{0};      ///< used and reserved, with all parts
  std::atomic<uint64_t> reserved_{0};  ///< of held_
};

}  // namespace mikv
