// A ceiling on the memory of all caches in the process.
#pragma once

#include <cstdint>

namespace mikv {

/// The most bytes that the tiers of all caches may take together, transient peaks included; 0: no limit. A call that
/// would need more fails with "out of memory" and leaves the cache as it says. Segments and bitmaps (well under 1 % of
/// the tiers) do not count.
void set_memory_limit(uint64_t bytes);
/// Bytes of all tiers now.
uint64_t tier_bytes();
/// The most there ever were.
uint64_t peak_tier_bytes();

}  // namespace mikv
