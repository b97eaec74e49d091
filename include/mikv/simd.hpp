// The SIMD targets that attention can run on.
#pragma once

#include <string>
#include <vector>

#include "mikv/export.h"
namespace mikv {

/// The target in use, such as "avx512": the best of the machine, or the one that the environment variable MIKV_TARGET
/// names. Chosen once, at first use.
MIKV_API std::string simd_target();

/// Targets of this build that this machine can run, best first.
MIKV_API std::vector<std::string> simd_targets();

}  // namespace mikv
