// The SIMD targets that attention can run on.
#pragma once

#include <string>
#include <vector>

#include "mikv/export.h"
namespace mikv {

/// The target in use, "avx512" say: the best one of the machine, or the one that the environment variable MIKV_TARGET
/// names. Chosen once, at first use.
MIKV_API std::string simd_target();

/// Targets that this build has and this machine can run, best first.
MIKV_API std::vector<std::string> simd_targets();

}  // namespace mikv
