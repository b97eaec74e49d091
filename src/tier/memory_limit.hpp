// The account of all tiers' memory in this process, and the most that they may take (mikv::set_memory_limit).
#pragma once

#include <cstddef>

namespace mikv::tier {

/// Throws std::bad_alloc, with nothing charged, if that is more than the limit allows. Safe from several threads.
void charge_memory(size_t bytes);
void uncharge_memory(size_t bytes);

}  // namespace mikv::tier
