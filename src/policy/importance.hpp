// Importance policies: which tokens of the hi tier to demote. Pure functions of (policy, scores, arrivals, budget).
//
// Every policy is a total order, "first to go" first; the victims are the n - n_keep first of that order:
//   h2o        the n_keep - floor((1 - recent) * n_keep) most recent go last; the others lowest score first, older
//              first among equals
//   window     oldest first
//   streaming  tokens with arrival < sinks go last (the first of them last of all); the others oldest first
//   random     lowest hash(seed, arrival) first: a token's luck is drawn once, so survivors stay a uniform sample
//   full       nobody goes
// The order does not depend on how slots are numbered. Arrivals are distinct within a KV head; where they are not,
// the lower index counts as older. Cost: O(n); one victim, the case of a generation step, allocates nothing.
// Sources: arXiv 2306.14048 (h2o), arXiv 2309.17453 (streaming), arXiv 2402.18096 section 3 (demotion).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mikv/spec.hpp"

namespace mikv::policy {

struct Choice {
  Importance importance = Importance::h2o;
  double recent = 0.5;  ///< used by h2o only: share of n_keep for the most recent
  uint32_t sinks = 0;   ///< used by streaming only
  uint64_t seed = 0;    ///< used by random only
};

/// Appends to `victims` the indices to demote so that n_keep tokens remain; none if there are no more than that.
/// scores[i], arrivals[i]: of token i; the spans are equally long. A NaN score counts as the highest.
/// `scratch` is working memory whose content does not matter: keep it between calls.
void choose_demotions(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                      uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch);

/// How many of n_keep tokens are kept for being the most recent.
uint64_t n_recent(double recent, uint64_t n_keep);

/// floor(keep * n_tokens), where a product within rounding of a whole number counts as that number (0.29 * 100 is 29).
uint64_t hi_budget(double keep, uint64_t n_tokens);

}  // namespace mikv::policy
