// The SIMD targets that attention can run on.
#pragma once

#include <string>
#include <vector>

namespace mikv {

/// The target in use, "avx512" say: the best one of the machine, or the one that the environment variable MIKV_TARGET
/// names. Chosen once, at first use.
std::string simd_target();

/// Targets that this build has and this machine can run, best first.
std::vector<std::string> simd_targets();

}  // namespace mikv
