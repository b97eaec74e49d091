// Reading and writing the bytes of a saved cache. Little endian, as every machine that mikv runs on.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace mikv::session {

class ByteWriter {
 public:
  explicit ByteWriter(std::vector<uint8_t>& to) : to_(to) {}

  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put_bytes(&value, sizeof value);
  }
  template <typename T>
  void put_array(std::span<const T> values) {
    put_bytes(values.data(), values.size_bytes());
  }
  void put_bytes(const void* bytes, size_t n) {
    if (n == 0) return;
    const size_t at = to_.size();
    to_.resize(at + n);
    std::memcpy(to_.data() + at, bytes, n);
  }

 private:
  std::vector<uint8_t>& to_;
};

/// Reads bytes that may be cut short or hostile. After the first read beyond the end every read returns zeros, and
/// ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> from) : from_(from) {}

  template <typename T>
  T get() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (const uint8_t* bytes = take(sizeof value)) std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  /// Returns n values, or none if fewer are left. Allocates no more than there are bytes left.
  template <typename T>
  std::vector<T> get_array(uint64_t n) {
    std::vector<T> values;
    if (!ok_ || n > left() / sizeof(T)) {
      ok_ = false;
      return values;
    }
    values.resize(n);
    if (n) std::memcpy(values.data(), take(n * sizeof(T)), n * sizeof(T));
    return values;
  }
  /// Returns the next n bytes, or null.
  const uint8_t* take(uint64_t n) {
    if (!ok_ || n > left()) {
      ok_ = false;
      return nullptr;
    }
    const uint8_t* bytes = from_.data() + at_;
    at_ += n;
    return bytes;
  }
  uint64_t left() const { return from_.size() - at_; }
  bool ok() const { return ok_; }

 private:
  std::span<const uint8_t> from_;
  uint64_t at_ = 0;
  bool ok_ = true;
};

}  // namespace mikv::session
