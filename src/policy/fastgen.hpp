// fastgen: each KV head keeps the smallest of five sets of tokens that has had enough of its attention: the first
// `sinks` tokens; these and punctuation; these and the frequent ones, which received most attention; these and the most
// recent ones, the local ones; all tokens. Enough is the spec key `recovery`. Source: FastGen, arXiv 2310.01801. `keep`
// is the share of frequent and local tokens together, half of it each.
//
// Records the attention of the prompt's last kQueries queries and of every generated token; the score is its sum, over
// queries and the group's query heads. The prompt's end picks the set. The head keeps it from then on.
//
// Our reading, where it differs from the source:
// - The first tokens stand for the source's special ones.
// - The engine says which tokens are punctuation. Where it says nothing, the second set is the first.
// - The source compares the whole prompt's attention with and without the other tokens. Here it is the share of the
//   attention of the last queries, which look at the sets as generated tokens will. What they give to each other counts
//   for the local set alone.
//
// Cost: a second product of queries and keys for the last kQueries queries of a prompt; O(n) per choice.
#pragma once

#include <cmath>

#include "policy/order.hpp"
#include "policy/policy.hpp"

namespace mikv::policy {

namespace fastgen {

inline constexpr uint32_t kQueries = 32;

/// The sets, numbered as saved states have them.
enum Pattern : uint8_t { kNone, kSpecial, kFrequent, kLocal, kAll, kPunctuation };

/// Those that are not all tokens, from the smallest to the largest.
inline constexpr Pattern kParts[] = {kSpecial, kPunctuation, kFrequent, kLocal};

/// Before the end of the prompt has picked, every token has a place.
inline Places places(uint8_t pattern, const Spec& spec, uint64_t n_live, uint64_t n_punctuation) {
  if (pattern == kNone || pattern == kAll) return {n_live, 0};
  const uint64_t half = hi_places(spec.keep / 2.0, n_live);
  const uint64_t n_local = pattern == kLocal ? half : 0, n_frequent = pattern == kFrequent ? half : n_local;
  const uint64_t n_named = spec.sinks + (pattern == kSpecial ? 0 : n_punctuation);
  return {std::min(n_live, n_named + n_frequent + n_local), std::min(n_live, n_local)};
}

/// The first tokens go last, the first of them at the very end. Before them goes punctuation, the older first, and
/// before that the most recent tokens. Of the others the lowest score goes first.
inline void choose(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                   uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const uint64_t recent = n_recent(choice.recent, n_keep);
  const uint32_t newest = newest_of(arrivals);
  const auto key = [&](uint32_t i) {
    if (arrivals[i] < choice.sinks) return uint64_t{UINT32_MAX} << 32 | (UINT32_MAX - arrivals[i]);
    if (std::signbit(scores[i])) return uint64_t{UINT32_MAX - 1} << 32 | arrivals[i];
    if (newest - arrivals[i] < recent) return uint64_t{UINT32_MAX - 2} << 32 | arrivals[i];
    return score_key(scores[i], arrivals[i]);
  };
  append_lowest(scores.size(), scores.size() - n_keep, key, victims, scratch);
}

/// Of the last kQueries tokens only the local ones count as recovered: each query looks at its own neighbours, which
/// are others for the tokens to come.
inline uint8_t pick(const Spec& spec, std::span<const float> scores, std::span<const uint32_t> arrivals,
                    uint64_t n_live, std::vector<uint32_t>& scratch) {
  double total = 0.0;
  uint64_t n_punctuation = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    total += std::abs(scores[i]);
    n_punctuation += arrivals[i] >= spec.sinks && std::signbit(scores[i]);
  }
  const uint32_t newest = newest_of(arrivals);
  if (!(total > 0.0)) return kAll;  // nothing was recorded: nothing is known to be of no use
  std::vector<uint32_t> victims;
  for (const Pattern pattern : kParts) {
    const Places kept = places(pattern, spec, n_live, n_punctuation);
    if (arrivals.size() <= kept.total) return pattern;
    victims.clear();
    choose({spec.importance, kept.share_of_recent(), spec.sinks, spec.seed}, scores, arrivals, kept.total, victims,
           scratch);
    std::vector<float> recovered(scores.begin(), scores.end());
    for (const uint32_t victim : victims) recovered[victim] = 0.0f;
    double sum = 0.0;
    for (size_t i = 0; i < recovered.size(); ++i) {
      const uint32_t age = newest - arrivals[i];
      if (arrivals[i] < spec.sinks || age >= kQueries || age < kept.recent) sum += std::abs(recovered[i]);
    }
    if (sum >= spec.recovery * total) return pattern;
  }
  return kAll;
}

}  // namespace fastgen

inline constexpr Policy kFastGen{
    .importance = Importance::fastgen,
    .name = "fastgen",
    .own_keys = "recovery,sinks",
    .recording = {.attention = true, .last_queries = fastgen::kQueries, .steps = true},
    .settle = nullptr,
    .choose = fastgen::choose,
    .patterns = {.n = fastgen::kPunctuation, .pick = fastgen::pick, .places = fastgen::places},
    .keeps_punctuation = true,
    .preset_keys = "importance=fastgen,keep=0.6,recovery=0.95,hi=f16,lo=evict,outlier=none",
    .description = "by head, the fewest that recover its attention",
};

}  // namespace mikv::policy
