// AddressSpace: memory that costs nothing until it is written. llama.cpp's own cache tensors and the holes of its state
// are never written, and are larger than the machine's memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "mikv/byte_size.hpp"

namespace mikv::llama {

struct Unmap {
  size_t size = 0;
  void operator()(uint8_t* memory) const { munmap(memory, size); }
};
using AddressSpace = std::unique_ptr<uint8_t[], Unmap>;

/// Null if there is no address space for it.
inline AddressSpace reserve_addresses(size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return AddressSpace(memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory), Unmap{size});
}

/// What it was for: "the context's cells".
inline Error no_addresses(size_t size, const std::string& what) {
  return {ErrorCode::out_of_memory, "no " + format_bytes(double(size)) + " of address space for " + what +
                                        "; use a smaller -c, or raise the limit of address space (ulimit -v)"};
}

}  // namespace mikv::llama
