// The oracle of attention, for tests and for programs that check an answer before they time it.
#pragma once

#include <span>

#include "mikv/context.hpp"
#include "mikv/export.h"

namespace mikv {

/// What Context::attend() computes, by the formula: one query and one token at a time, in double precision, over
/// decoded keys and values. Same arguments within a step; records and compresses nothing. Slow. Errors: as attend().
MIKV_API Status reference_attend(const Context& context, int layer, std::span<const AttendArgs> calls);

}  // namespace mikv
