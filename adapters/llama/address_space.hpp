// AddressSpace: memory that costs nothing until it is written. llama.cpp's own cache tensors and the holes of its state
// are never written, and are larger than the machine's memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace mikv::llama {

class AddressSpace {
 public:
  AddressSpace() = default;
  /// data() is null if there is no address space for it.
  explicit AddressSpace(size_t size) : size_(size) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) data_ = static_cast<uint8_t*>(memory);
  }
  ~AddressSpace() {
    if (data_) munmap(data_, size_);
  }
  AddressSpace(AddressSpace&& other) noexcept { *this = std::move(other); }
  AddressSpace& operator=(AddressSpace&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t size() const { return data_ ? size_ : 0; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace mikv::llama
