#include "policy/ladder.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace mikv::policy {
namespace {

// docs/results/ladder.csv: qwen2.5-coder-1.5b, qwen2.5-coder-0.5b and smollm2-135m. Below the last one answers fall
// apart.
constexpr std::array<MeasuredRung, 9> kMeasured = {{{{0.2, 3.9}, 0.0012, 0.0032},
                                                    {{0.12, 3.61}, 0.0015, 0.0036},
                                                    {{0.11, 3.35}, 0.0024, 0.0037},
                                                    {{0.1, 3.0}, 0.0027, 0.0047},
                                                    {{0.08, 2.7}, 0.0035, 0.0057},
                                                    {{0.07, 2.4}, 0.0049, 0.0069},
                                                    {{0.06, 2.15}, 0.0068, 0.0121},
                                                    {{0.06, 1.89}, 0.0089, 0.0218},
                                                    {{0.05, 1.65}, 0.0170, 0.0427}}};

// Of specs that were not measured: tokens in high precision down to 4 %, then the format, then down to 1 %.
constexpr double kFairKeep = 0.04, kLeastKeep = 0.01, kKeepStep = 0.9;

// Of mixed bits: shares of the asked share that are tried before bits. Only what leaves the hi tier is encoded anew,
// and less is lost than with fewer bits (docs/results/shares.csv).
constexpr double kFewerFirst[] = {0.75, 0.625};
constexpr double kFairShare = 0.6;

std::vector<Rung> mixed_ladder(const Spec& asked) {
  std::vector<Rung> ladder;
  double keep = asked.keep;
  for (const double share : kFewerFirst) {
    const double fewer = std::round(1e4 * share * asked.keep) / 1e4;
    if (fewer >= kLeastKeep) ladder.push_back({keep = fewer, asked.bits});
  }
  // No steps between the measured bits: each encodes all that is stored anew.
  for (const MeasuredRung& measured : kMeasured) {
    if (measured.rung.bits < asked.bits) ladder.push_back({std::min(keep, measured.rung.keep), measured.rung.bits});
  }
  return ladder;
}

std::vector<Rung> uniform_ladder(const Spec& asked) {
  std::vector<Rung> ladder;
  Rung rung{asked.keep, double(format_bits(asked.lo))};
  const auto keep_less = [&](double least) {
    while (rung.keep > least) {
      rung.keep = std::max(least, rung.keep * kKeepStep);
      ladder.push_back(rung);
    }
  };
  keep_less(kFairKeep);
  for (std::optional<Format> lo = smaller_format(asked.lo); lo; lo = smaller_format(*lo)) {
    rung.bits = format_bits(*lo);
    ladder.push_back(rung);
  }
  keep_less(kLeastKeep);
  return ladder;
}

std::string figure(double value) {
  std::array<char, 16> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, 4).ptr};
}

}  // namespace

std::span<const MeasuredRung> measured_rungs() { return kMeasured; }

std::vector<Rung> ladder_of(const Spec& asked) {
  if (asked.uncompressed() || asked.importance == Importance::full) return {};
  return asked.mixed() ? mixed_ladder(asked) : uniform_ladder(asked);
}

size_t n_share_rungs(const Spec& asked, std::span<const Rung> ladder) {
  const double bits = asked.mixed() ? asked.bits : double(format_bits(asked.lo));
  const auto fewer_bits = std::ranges::find_if(
      ladder, [&](const Rung& rung) { return rung.bits < bits || rung.keep < kFairShare * asked.keep; });
  return size_t(fewer_bits - ladder.begin());
}

Spec lowered(Spec spec, const Rung& rung) {
  spec.keep = std::min(spec.keep, rung.keep);
  if (spec.mixed()) {
    spec.bits = std::min(spec.bits, rung.bits);
  } else {
    while (rung.bits < format_bits(spec.lo) && smaller_format(spec.lo)) spec.lo = *smaller_format(spec.lo);
  }
  return spec;
}

std::string cost_of(const Spec& spec) {
  if (!spec.mixed()) return "not measured; see `mikv eval kld`";
  const auto found = std::ranges::find_if(kMeasured, [&](const MeasuredRung& m) { return m.rung.bits <= spec.bits; });
  const size_t near = std::min<size_t>(size_t(found - kMeasured.begin()), kMeasured.size() - 1);
  // Fewer tokens in hi than measured with these bits: docs/results/shares.csv has what five eighths of them lose.
  const bool fewer = spec.keep < kMeasured[near].rung.keep;
  const size_t most = std::min(near + fewer, kMeasured.size() - 1);
  return "mean KL divergence " + figure(kMeasured[near].least_kld) + " to " + figure(kMeasured[most].most_kld) +
         (fewer ? ", between what was measured" : " where measured");
}

}  // namespace mikv::policy
