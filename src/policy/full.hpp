// full: every token stays in the hi tier. With hi=f16 it is the uncompressed cache, the baseline of the others.
//
// Records nothing, scores nothing, costs nothing.
#pragma once

#include "policy/policy.hpp"

namespace mikv::policy {

inline constexpr Policy kFull{
    .importance = Importance::full,
    .name = "full",
    .own_keys = {},
    .recording = {},
    .settle = nullptr,
    .choose = nullptr,
    .preset_keys = "importance=full,hi=f16,outlier=none",
    .description = "every token as it is in f16: the uncompressed cache",
};

}  // namespace mikv::policy
