// window: keeps the most recent tokens; the oldest goes first. A sliding window, as in Mistral's attention.
//
// Records nothing; the score is the arrival. Cost: O(n) per choice.
#pragma once

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

inline void choose_window(const Choice&, std::span<const float>, std::span<const uint32_t> arrivals, uint64_t n_keep,
                          std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const size_t n = arrivals.size();
  append_lowest(n, n - n_keep, [&](uint32_t i) { return uint64_t{arrivals[i]}; }, victims, scratch);
}

inline constexpr Policy kWindow{
    .importance = Importance::window,
    .name = "window",
    .own_keys = {},
    .recording = {},
    .settle = nullptr,
    .choose = choose_window,
    .preset_keys = "importance=window,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "most recent; the rest is lost",
};

}  // namespace mikv::policy
