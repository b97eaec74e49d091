#include "context/budget.hpp"

#include <algorithm>
#include <array>
#include <chrono>

#include "mikv/byte_size.hpp"

namespace mikv::context {
namespace {

// At equal bytes, fewer tokens than this in high precision are worse than fewer bits for the others
// (docs/adr/0012-bits-between-heads.md).
constexpr double kFairKeep = 0.04, kLeastKeep = 0.01, kKeepStep = 0.9;
// Below 2 bits answers fall apart (docs/quality.md).
constexpr double kLeastBits = 2.0, kBitsStep = 0.25;

// Programs that are refused try again with less, many times a second: one line is enough.
constexpr int64_t kSecondsBetweenRefusals = 10;

std::string decimals(double value, int n) {
  std::string text = std::to_string(value);
  return text.substr(0, text.find('.') + 1 + size_t(n));
}

std::string held_as(const Spec& spec) {
  return decimals(100.0 * spec.keep, 1) + " % of the tokens in high precision, the others in " +
         std::string(format_name(spec.lo)) + (spec.mixed() ? " of " + decimals(spec.bits, 2) + " bits" : "");
}

}  // namespace

bool lower(Spec& spec) {
  if (spec.uncompressed() || spec.importance == Importance::full) return false;
  const auto keep_less = [&spec](double least) { spec.keep = std::max(least, spec.keep * kKeepStep); };
  if (spec.keep > kFairKeep) {
    keep_less(kFairKeep);
  } else if (spec.mixed() && spec.bits > kLeastBits) {
    spec.bits = std::max(kLeastBits, spec.bits - kBitsStep);
  } else if (const std::optional<Format> smaller = smaller_format(spec.lo)) {
    spec.lo = *smaller;
  } else if (spec.keep > kLeastKeep) {
    keep_less(kLeastKeep);
  } else {
    return false;
  }
  return true;
}

const char* cost_of(const Spec& spec) {
  const double bits = spec.mixed() ? spec.bits : format_bits(spec.lo);
  if (bits >= 3.5) return "mean KL divergence as mikv-hq, 0.002 to 0.005";
  if (bits >= 2.7) return "mean KL divergence as mikv, 0.004 to 0.01";
  if (bits >= 2.2) return "mean KL divergence between mikv and mikv-max, 0.008 to 0.02";
  return "mean KL divergence as mikv-max, 0.015 to 0.05";
}

// One search for room: the budget's state, and what it may change.
class Attempt {
 public:
  Attempt(Budget& budget, const Budget::Scene& scene) : budget_(budget), scene_(scene), state_(budget.state_) {}

  // Reserves what the step needs; false if there is no room for it.
  bool fits() { return scene_.account.reserve(needed()); }

  // Concessions. Each returns whether the step fits then.

  bool stage_in_bytes() {
    set_staged_in_bytes(true);
    return fits();
  }

  // The more of a prompt is compressed at once, the better.
  bool compress_large_pieces() {
    const uint32_t n_ubatch = scene_.options.n_ubatch;
    for (uint32_t from = kStreamedTokens; from > kFirstStreamedTokens;
         from -= std::min(n_ubatch, from - kFirstStreamedTokens)) {
      if (compress_pieces(from - n_fewer())) return true;
    }
    return compress_pieces(kFirstStreamedTokens - n_fewer());
  }

  // Only where that is enough: a prompt is then compressed at its end, and a segment that is frozen on a prompt's first
  // few tokens is bad for as long as it lives.
  bool keep_a_smaller_share() {
    uint64_t freed = 0;
    for (const auto& [index, layer] : scene_.layers.layers) freed += layer.cache->freed_by(kFairKeep);
    if (needed() > scene_.account.room() + freed) return false;
    while (state_.spec.keep > kFairKeep && lower_once()) {
      if (fits()) return true;
    }
    return false;
  }

  bool compress_small_pieces() { return compress_pieces(kFirstTokens) || compress_pieces(0); }

  bool lower_to_the_end() {
    while (lower_once()) {
      if (fits()) return true;
    }
    return false;
  }

  void begin() {
    state_.pressed_from.reset();
    set_staged_in_bytes(false);
  }

 private:
  uint64_t needed() const {
    const uint64_t to_compress = state_.spec.uncompressed() ? 0 : bytes_to_compress(scene_.layers, scene_.sequences);
    return to_compress + bytes_of_step(scene_.layers, scene_.plan, state_, scene_.options.n_ubatch);
  }

  void set_staged_in_bytes(bool on) {
    for (const auto& [index, layer] : scene_.layers.layers) layer.cache->stage_in_bytes(on);
  }

  // Beside a prompt other sequences may have a token each, and cut its micro-batches so much earlier: as many fewer
  // tokens do.
  uint32_t n_fewer() const {
    uint32_t n_largest = 0;
    for (const StepPlan::Run& run : scene_.plan.runs()) n_largest = std::max(n_largest, run.n);
    const uint32_t n_others = scene_.plan.n_tokens() - n_largest;
    return n_others <= scene_.options.n_ubatch / 8 ? n_others : 0;
  }

  // Compresses prompts of which so much was read, which may make room for all of the step in f16, or else in this step
  // those that get so far.
  bool compress_pieces(uint32_t from) {
    state_.pressed_from.reset();
    const bool committed = commit(from);
    scene_.continue_full(kFirstStreamedTokens - n_fewer());
    if (committed && fits()) return true;
    state_.pressed_from = from;
    if (!fits()) return false;
    for (const StepPlan::Run& run : scene_.plan.runs()) {
      const CommitRule rule = rule_of(state_.spec, run, state_.pressed_from);
      (void)scene_.layers.share_bits(run.segment, rule.from, std::min(run.n, scene_.options.n_ubatch),
                                     scene_.options.n_threads);
    }
    return fits();
  }

  bool commit(uint32_t from) {
    bool done = true;
    scene_.sequences.for_each_segment([&](SegmentId segment) {
      done &= scene_.layers.share_bits(segment, from, 0, scene_.options.n_threads).ok();
      done &= scene_.layers.commit(segment, from).ok();
    });
    return done;
  }

  bool lower_once() {
    Spec next = state_.spec;
    if (!lower(next)) return false;
    for (const auto& [index, layer] : scene_.layers.layers) {
      const double bits = next.mixed() ? next.bits : format_bits(next.lo);
      if (!layer.cache->lower(next.keep, bits)) break;  // out of memory: the next try resumes here
    }
    state_.spec = next;
    ++state_.n_lowered;
    return true;
  }

  Budget& budget_;
  const Budget::Scene& scene_;
  BudgetState& state_;
};

namespace {

struct Concession {
  const char* line;  ///< logged the first time; empty: the spec that is then held says it
  const char* cost;  ///< in quality
  bool (Attempt::*try_it)();
};

// In the order in which they are tried: what costs less quality per byte comes first.
constexpr std::array kConcessions = {
    Concession{"where there is no room for a whole prompt in f16, what was read of it waits for its end in 8 bits",
               "next to none lost", &Attempt::stage_in_bytes},
    Concession{"where there is no room for a whole prompt in 8 bits, what was read of it is compressed before its end",
               "as streaming prefill, docs/quality.md", &Attempt::compress_large_pieces},
    Concession{"", "within the spec's own level", &Attempt::keep_a_smaller_share},
    Concession{"where there is no room for 1,024 tokens of a prompt, it is compressed in smaller pieces",
               "KL divergence 1.8 times that of exact prefill, or more", &Attempt::compress_small_pieces},
    Concession{"", "down to mikv-max and below", &Attempt::lower_to_the_end},
};

}  // namespace

Status Budget::make_room(const Scene& scene) {
  if (scene.account.room() == UINT64_MAX) return {};  // no limit
  scene.account.end_reservation();
  const uint64_t limit = scene.account.used() + scene.account.room();
  const auto log = [&](const std::string& line) {
    if (scene.options.log) scene.options.log("KV budget " + format_bytes(double(limit)) + ": " + line);
  };
  Attempt attempt(*this, scene);
  attempt.begin();
  if (attempt.fits()) return {};
  const Spec before = state_.spec;
  bool done = false;
  for (size_t i = 0; !done && !state_.spec.uncompressed() && i < kConcessions.size(); ++i) {
    const Concession& concession = kConcessions[i];
    done = (attempt.*concession.try_it)();
    if (*concession.line && !(said_ >> i & 1))
      log(concession.line + std::string(" (quality: ") + concession.cost + ")");
    said_ |= uint64_t{1} << i;
  }
  if (!(state_.spec == before)) log(held_as(state_.spec) + " from now on (" + cost_of(state_.spec) + ")");
  if (done) return {};
  ++state_.n_refused;
  const std::string why = "no room for " + std::to_string(scene.plan.n_tokens()) + " more tokens beside " +
                          format_bytes(double(scene.account.used())) +
                          " in use; end or shorten contexts, or raise the budget";
  const int64_t now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (now - refused_at_s_ > kSecondsBetweenRefusals) log(why);
  refused_at_s_ = now;
  return Error{ErrorCode::over_budget, "KV budget " + format_bytes(double(limit)) + ": " + why};
}

}  // namespace mikv::context
