// The oracle of attention, for tests, and for programs that check an answer before they time it.
#pragma once

#include <span>

#include "mikv/context.hpp"
#include "mikv/export.h"

namespace mikv {

/// Computes what Context::attend() does, by the formula: in double precision, over decoded keys and values. Takes the
/// same arguments, within a step. Records and compresses nothing. Slow. Errors: as attend().
MIKV_API Status reference_attend(const Context& context, int layer, std::span<const AttendArgs> calls);

}  // namespace mikv
