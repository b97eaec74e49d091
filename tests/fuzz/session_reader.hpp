// What the fuzzer's inputs are of, for the program that makes its first ones.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "layer/layer_cache.hpp"

namespace mikv::test {

inline constexpr LayerShape kFuzzedShape{4, 2, 16, 24};
inline constexpr std::array kFuzzedSpecs = {
    "full", "h2o", "rtn4", "mikv-paper", "mikv", "mikv-max", "mikv:lo=int3,keep=0.3", "kivi2:group=8,residual=10"};

/// A layer of spec number `choice`.
std::unique_ptr<LayerCache> fuzzed_layer(uint8_t choice);

}  // namespace mikv::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
