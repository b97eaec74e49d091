// Policies: which tokens leave the hi tier. One file each in this folder, such as policy/h2o.hpp: what it records, how
// it scores, what it costs, its source. policies.cpp has the table of them; docs/extending.md tells how to add one.
//
// A policy is a total order of tokens, "first to go" first, independent of slot numbers: a pure function of scores,
// arrivals and a number of places. Arrivals are distinct within a KV head; among equal ones the lower index counts as
// older.
#pragma once

#include <algorithm>
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

/// Transforms recorded scores before a commit chooses; the result is stored with the tokens. `scores`: of n_hi tokens
/// of the hi tier, then of one or more staged tokens. compressed: as in Recording::counts(). May throw std::bad_alloc,
/// but not for a single staged token of a compressed head.
using Settle = void (*)(std::span<float> scores, std::span<const uint32_t> arrivals, size_t n_hi, bool compressed,
                        std::vector<uint32_t>& scratch);

/// Number of tokens that hi may hold, and how many of them are places for the most recent ones.
struct Places {
  uint64_t total = 0, recent = 0;
  double share_of_recent() const { return total ? double(recent) / double(total) : 0.0; }
};

/// Of a policy that gives KV heads different numbers of places: each head picks one of n patterns, 1 to n, at its first
/// commit, and keeps it.
struct Patterns {
  uint8_t n = 0;  ///< 0: all heads have the places that `keep` and `recent` say
  /// Scores and arrivals of the tokens of the commit. May throw std::bad_alloc.
  uint8_t (*pick)(const Spec& spec, std::span<const float> scores, std::span<const uint32_t> arrivals, uint64_t n_live,
                  std::vector<uint32_t>& scratch) = nullptr;
  /// pattern: 0 before the first commit. n_punctuation: staged and in hi, beyond the first spec.sinks tokens.
  Places (*places)(uint8_t pattern, const Spec& spec, uint64_t n_live, uint64_t n_punctuation) = nullptr;
};

/// Places of a policy of which `keep` and `recent` say nothing.
using PlacesOf = Places (*)(const Spec& spec, uint64_t n_live);

/// Which queries add their attention to the scores of tokens, summed over the group's query heads.
struct Recording {
  bool attention = false;     ///< false: none, scores are 0
  uint32_t last_queries = 0;  ///< 0: all. Else at most this many last queries of a prompt
  bool steps = false;         ///< with last_queries: the queries of generated tokens too
  /// Adds 1 for each query head whose attention is above the mean of the tokens that it sees, instead of the attention.
  bool above_mean = false;

  /// True if the queries of a call count. compressed: the KV head has compressed tokens. A policy of last queries
  /// takes few tokens after the first commit for generated ones.
  constexpr bool counts(uint32_t n_tokens, bool compressed) const {
    return attention && (last_queries == 0 || steps || !compressed || n_tokens >= last_queries);
  }
  /// The first query of a call that counts.
  constexpr uint32_t first_query(uint32_t n_tokens) const {
    return last_queries == 0 || n_tokens < last_queries ? 0 : n_tokens - last_queries;
  }
  /// True if a call has all the queries that count: records of earlier calls are dropped. The rest of a prompt that was
  /// cut into calls may be shorter; it is added to them.
  constexpr bool starts_anew(uint32_t n_tokens) const { return last_queries != 0 && n_tokens >= last_queries; }
  bool operator==(const Recording&) const = default;
};

struct Policy {
  Importance importance;
  std::string_view name;      ///< in specs
  std::string_view own_keys;  ///< spec keys that not every policy reads and this one does: "a,b"; empty: none
  Recording recording;
  Settle settle;                   ///< null: scores stay as recorded
  Choose choose;                   ///< null: it demotes nothing
  Patterns patterns = {};          ///< none: all heads have the same number of places
  PlacesOf places = nullptr;       ///< null: of `keep` and `recent`, or of the pattern
  bool keeps_punctuation = false;  ///< scores of punctuation have a minus, also of 0; else no score has
  uint32_t fewer_places = 0;       ///< the most that `places` gets fewer by, as tokens come
  std::string_view preset_keys;    ///< of the preset of the same name
  std::string_view description;    ///< of that preset, one line

  constexpr bool demotes() const { return choose != nullptr; }
  constexpr bool reads(std::string_view key) const {
    for (std::string_view rest = own_keys; !rest.empty();) {
      const size_t end = std::min(rest.find(','), rest.size());
      if (rest.substr(0, end) == key) return true;
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    return false;
  }
  /// True if part of the hi tier is for the most recent tokens, whatever their scores.
  constexpr bool reserves_recent() const { return reads("recent") || reads("residual"); }
};

/// The table, in the order in which help texts list it.
std::span<const Policy> policies();
const Policy& policy_of(Importance importance);

/// What a cache records: its policy's recording, or nothing if all tokens or none are in hi whatever their scores.
Recording recording_of(const Spec& spec);

/// Appends the victims of the policy of `choice`; none if there are no more than n_keep tokens.
void choose_demotions(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                      uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch);

/// Number of n_keep places that are for the most recent tokens.
uint64_t n_recent(double recent, uint64_t n_keep);

/// floor(keep * n_tokens). A product within rounding of a whole number counts as that number: 0.29 * 100 is 29.
uint64_t hi_places(double keep, uint64_t n_tokens);

}  // namespace mikv::policy
