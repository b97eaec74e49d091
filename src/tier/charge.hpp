// Charge: bytes that an account counts for as long as the Charge lives.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

#include "mikv/memory_account.hpp"

namespace mikv::tier {

class Charge {
 public:
  Charge() = default;
  explicit Charge(MemoryAccount* account) : account_(account) {}
  ~Charge() { set(0); }
  Charge(Charge&& other) noexcept : account_(other.account_), bytes_(std::exchange(other.bytes_, 0)) {}
  Charge& operator=(Charge&& other) noexcept {
    if (this == &other) return *this;
    set(0);
    account_ = other.account_;
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  uint64_t bytes() const { return bytes_; }

  /// Names another account, which has been charged for bytes(), as the one that they are released from.
  void change_account(MemoryAccount& account) { account_ = &account; }

  /// Throws std::bad_alloc, with nothing changed, if the account has no room for the increase.
  void set(uint64_t bytes) {
    if (bytes == bytes_) return;
    if (bytes > bytes_ && !account_->charge(bytes - bytes_)) throw std::bad_alloc();
    if (bytes < bytes_) account_->release(bytes_ - bytes);
    bytes_ = bytes;
  }

 private:
  MemoryAccount* account_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace mikv::tier
