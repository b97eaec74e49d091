// Policies: which tokens leave the hi tier. One file each in this folder, e.g. policy/h2o.hpp: what it records, how it
// scores, what it costs, its source. policies.cpp has the table that everything else asks; docs/extending.md tells how
// one is added.
//
// A policy is a total order of tokens, "first to go" first, which does not depend on how slots are numbered. It is a
// pure function of scores, arrivals and a budget. Arrivals are distinct within a KV head; where they are not, the lower
// index counts as older.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "mikv/spec.hpp"

namespace mikv::policy {

/// A policy with the values of the spec keys that policies read.
struct Choice {
  Importance importance = Importance::h2o;
  double recent = 0.5;  ///< share of n_keep for the most recent tokens
  uint32_t sinks = 0;   ///< first tokens that stay
  uint64_t seed = 0;
};

/// Appends to `victims` the indices to demote so that n_keep tokens remain, n_keep < arrivals.size().
/// scores[i], arrivals[i]: of token i; the spans are equally long. A NaN score counts as the highest.
/// `scratch` is working memory whose content does not matter. One victim, the case of a generation step, allocates
/// nothing.
using Choose = void (*)(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                        uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch);

struct Policy {
  Importance importance;
  std::string_view name;         ///< in specs
  std::string_view own_key;      ///< the spec key that only this policy reads; empty: none
  bool records_attention;        ///< scores are the attention that tokens receive; else all of them are 0
  Choose choose;                 ///< null: it demotes nothing
  std::string_view preset_keys;  ///< of the preset that has its name
  std::string_view description;  ///< of that preset, one line

  constexpr bool demotes() const { return choose != nullptr; }
  /// Part of the hi tier is for the most recent tokens, whatever their scores (the spec key `recent`).
  constexpr bool reserves_recent() const { return own_key == "recent"; }
};

/// The table, in the order in which help texts list it.
std::span<const Policy> policies();
const Policy& policy_of(Importance importance);

/// What the policy of `choice` appends to `victims`; nothing if there are no more than n_keep tokens.
void choose_demotions(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                      uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch);

/// How many of n_keep tokens are kept for being the most recent.
uint64_t n_recent(double recent, uint64_t n_keep);

/// floor(keep * n_tokens), where a product within rounding of a whole number counts as that number (0.29 * 100 is 29).
uint64_t hi_budget(double keep, uint64_t n_tokens);

}  // namespace mikv::policy
