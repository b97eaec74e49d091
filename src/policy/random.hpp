// random: keeps a random subset, from `seed`: the control that other policies have to beat.
//
// Records nothing; the score is hash(seed, arrival). Each token draws once, so survivors stay a uniform sample.
// Cost: O(n) per choice.
#pragma once

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

inline uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline void choose_random(const Choice& choice, std::span<const float>, std::span<const uint32_t> arrivals,
                          uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const auto key = [&](uint32_t i) { return splitmix64(splitmix64(choice.seed) ^ arrivals[i]); };
  append_lowest(arrivals.size(), arrivals.size() - n_keep, key, victims, scratch);
}

inline constexpr Policy kRandom{
    .importance = Importance::random,
    .name = "random",
    .own_keys = "seed",
    .recording = {},
    .settle = nullptr,
    .choose = choose_random,
    .preset_keys = "importance=random,keep=0.2,hi=f16,lo=evict,outlier=none",
    .description = "a random subset: the control",
};

}  // namespace mikv::policy
