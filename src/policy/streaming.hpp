// streaming: keeps the first `sinks` tokens, which softmax uses as a sink, and the most recent ones. In a budget
// smaller than the sinks, the first of them goes last. Source: StreamingLLM, arXiv 2309.17453.
//
// Records nothing; the score is the arrival, that of a sink above all others. Cost: O(n) per choice.
#pragma once

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

inline void choose_streaming(const Choice& choice, std::span<const float>, std::span<const uint32_t> arrivals,
                             uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const auto key = [&](uint32_t i) {
    const uint32_t arrival = arrivals[i];
    return arrival < choice.sinks ? (uint64_t{1} << 32) + (choice.sinks - 1 - arrival) : arrival;
  };
  append_lowest(arrivals.size(), arrivals.size() - n_keep, key, victims, scratch);
}

inline constexpr Policy kStreaming{
    .importance = Importance::streaming,
    .name = "streaming",
    .own_keys = "sinks",
    .recording = {},
    .settle = nullptr,
    .choose = choose_streaming,
    .preset_keys = "importance=streaming,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "first and recent; the rest is lost",
};

}  // namespace mikv::policy
