// The table of policies.
#include <algorithm>
#include <cmath>

#include "policy/fastgen.hpp"
#include "policy/full.hpp"
#include "policy/h2o.hpp"
#include "policy/policy.hpp"
#include "policy/random.hpp"
#include "policy/residual.hpp"
#include "policy/scissorhands.hpp"
#include "policy/snapkv.hpp"
#include "policy/streaming.hpp"
#include "policy/window.hpp"

namespace mikv::policy {
namespace {

constexpr Policy kPolicies[] = {kFull, kH2o, kWindow, kStreaming, kSnapKv, kScissorhands, kFastGen, kResidual, kRandom};

/// Importance::random stays the last of its enumerators.
constexpr bool every_importance_has_a_policy() {
  for (uint32_t value = 0; value <= uint32_t(Importance::random); ++value) {
    uint32_t n_rows = 0;
    for (const Policy& policy : kPolicies) n_rows += policy.importance == Importance(value);
    if (n_rows != 1) return false;
  }
  return true;
}
static_assert(every_importance_has_a_policy());

}  // namespace

std::span<const Policy> policies() { return kPolicies; }

const Policy& policy_of(Importance importance) {
  return *std::ranges::find(kPolicies, importance, &Policy::importance);
}

Recording recording_of(const Spec& spec) {
  const Policy& policy = policy_of(spec.importance);
  const bool chooses = policy.patterns.n > 0 || (spec.keep > 0.0 && spec.keep < 1.0);
  return chooses ? policy.recording : Recording();
}

void choose_demotions(const Choice& choice, std::span<const float> scores, std::span<const uint32_t> arrivals,
                      uint64_t n_keep, std::vector<uint32_t>& victims, std::vector<uint32_t>& scratch) {
  const Policy& policy = policy_of(choice.importance);
  if (policy.demotes() && arrivals.size() > n_keep) {
    policy.choose(choice, scores, arrivals, n_keep, victims, scratch);
  }
}

uint64_t n_recent(double recent, uint64_t n_keep) { return n_keep - hi_places(1.0 - recent, n_keep); }

uint64_t hi_places(double keep, uint64_t n_tokens) {
  const double product = keep * double(n_tokens);
  const double nearest = std::nearbyint(product);
  // A decimal `keep` is off by at most half an ulp, and so is the product: 1e-9 of it is far above both, and far
  // below 1 token for any cache that fits a machine.
  const double places = std::abs(product - nearest) <= 1e-9 * std::max(1.0, nearest) ? nearest : std::floor(product);
  return std::min(uint64_t(std::max(places, 0.0)), n_tokens);
}

}  // namespace mikv::policy
