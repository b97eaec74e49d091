// What a policy demotes, for tests that give it scores by hand.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "policy/policy.hpp"

namespace mikv::test {

/// Arrivals of the tokens that a policy demotes so that n_keep are left.
inline std::set<uint32_t> demoted(const policy::Choice& choice, const std::vector<float>& scores,
                                  const std::vector<uint32_t>& arrivals, uint64_t n_keep) {
  std::vector<uint32_t> victims, scratch;
  policy::choose_demotions(choice, scores, arrivals, n_keep, victims, scratch);
  std::set<uint32_t> result;
  for (const uint32_t i : victims) result.insert(arrivals[i]);
  return result;
}

}  // namespace mikv::test
