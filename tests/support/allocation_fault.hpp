// Memory that runs out. Defined in fault_test.cpp, whose binary hands the library's allocations to it.
#pragma once

#include <atomic>
#include <cstdint>

namespace mikv::test {

/// Fails allocations of those that are made while it counts. Threads may allocate; the rest is for one thread.
struct AllocationFault {
  std::atomic<bool> counting = false, failed = false;
  std::atomic<uint32_t> left = 0;  ///< allocations before the one that fails
  bool lasting = false;            ///< all after it fail too, not only the one
  uint64_t n_failed = 0;

  bool hits() {
    if (!counting) return false;
    if (failed) return lasting;
    if (left.fetch_sub(1) != 0) return false;
    ++n_failed;
    return failed = true;
  }
};

extern AllocationFault allocation;

}  // namespace mikv::test
