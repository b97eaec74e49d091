#include "context/budget.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <functional>

#include "context/demand.hpp"
#include "mikv/byte_size.hpp"

namespace mikv::context {

using policy::Rung;

namespace {

// Programs that are refused try again with less, many times a second, and long prompts lower what there is a little at
// a time: one line is enough.
constexpr int64_t kSecondsBetweenLines = 10;

int64_t seconds_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string decimals(double value, int n) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, n).ptr};
}

std::string held_as(const Spec& spec) {
  const std::string recent = std::to_string(spec.residual) + " recent tokens",
                    share = decimals(100.0 * spec.keep, 1) + " % of the tokens";
  return (spec.importance == Importance::residual ? recent : share) + " in high precision, the others in " +
         std::string(format_name(spec.lo)) + (spec.mixed() ? " of " + decimals(spec.bits, 2) + " bits" : "");
}

}  // namespace

// One search for room: the budget's state, and what it may change.
class Attempt {
 public:
  Attempt(Budget& budget, const Budget::Scene& scene)
      : budget_(budget), scene_(scene), spec_(scene.options.spec), rungs_(policy::ladder_of(spec_)) {}

  void begin();
  /// Reserves what the step needs; false if there is no room for it.
  bool fits() { return scene_.account.reserve(needed({spec_, budget_.pressed_from_})); }
  /// True if the step would fit after the last concession, of those that lower nothing if it may not.
  bool could_fit(bool may_lower) const;
  uint64_t least() const;  ///< that the step takes then

  // Concessions. Each returns whether the step fits then.
  bool stage_in_bytes();
  /// The more of a prompt is compressed at once, the better.
  bool compress_large_pieces();
  bool lower_shares() { return lower(policy::n_share_rungs(spec_, rungs_)); }
  bool compress_small_pieces();
  bool lower_bits() { return lower(std::min(rungs_.size(), policy::n_share_rungs(spec_, rungs_) + 1)); }
  bool compress_at_once() { return compress_pieces(0); }
  bool lower_to_the_end();

  /// Reserves bytes_at(null) at the first rung at which they fit beside what the segments then have.
  bool lower_for(const std::function<uint64_t(const Rung*)>& bytes_at, const std::function<void(const Rung&)>& also);

  const Rung* lowest() const { return lowest_ ? &*lowest_ : nullptr; }
  bool lowered_all() const { return lowered_all_; }

 private:
  /// Segments that are compressed before the step.
  enum class Commits { none, others, all };

  Rung last_rung() const { return rungs_.empty() ? Rung() : rungs_.back(); }
  uint64_t needed(const Pressure& pressure) const;
  /// What lowering a segment, or all of them, gives back.
  int64_t freed_by(SegmentId segment, const Rung& rung, bool commit) const;
  int64_t freed_by(const Rung& rung, Commits commits) const;
  struct Freed {
    SegmentId segment;
    int64_t bytes;
  };
  /// What lowering each segment that is not of the step gives back, the most first; those that give nothing are left
  /// out.
  std::vector<Freed> freed_by_others(const Rung& rung) const;
  /// Room once so much was freed.
  uint64_t room_after(int64_t freed) const;
  bool in_step(SegmentId segment) const;
  void continue_full(uint32_t n_tokens);
  uint32_t n_fewer() const;
  void set_staged_in_bytes(bool on);
  bool compress_pieces(uint32_t from);
  bool fits_shared();
  bool commit(uint32_t from);
  /// To the first of so many rungs that is enough, as few segments as that takes; to none if none is.
  bool lower(size_t n_rungs);
  bool lower_enough(std::span<const Freed> others, const Rung& rung);
  void lower_all(const Rung& rung);
  void lower_to(std::span<const SegmentId> segments, const Rung& rung);

  Budget& budget_;
  const Budget::Scene& scene_;
  const Spec& spec_;
  std::vector<Rung> rungs_;
  std::optional<Rung> lowest_;
  bool lowered_all_ = false;
  bool out_of_memory_ = false;     ///< the last lower_to() was not whole
  bool shares_need_room_ = false;  ///< a share could not be lowered
};

void Attempt::begin() {
  budget_.pressed_from_.reset();
  set_staged_in_bytes(false);
  continue_full(kSegmentTokens);
}

bool Attempt::could_fit(bool may_lower) const {
  if (spec_.uncompressed()) return false;
  const Rung last = may_lower ? last_rung() : Rung();
  return needed({spec_, 0, &last}) <= room_after(freed_by(last, Commits::others)) ||
         needed({spec_, 0, &last, true}) <= room_after(freed_by(last, Commits::all));
}

uint64_t Attempt::least() const {
  if (spec_.uncompressed()) return needed({spec_, budget_.pressed_from_});
  const Rung last = last_rung();
  return std::min(needed({spec_, 0, &last}), needed({spec_, 0, &last, true}));
}

bool Attempt::stage_in_bytes() {
  set_staged_in_bytes(true);
  continue_full(kSegmentTokens);
  return fits();
}

bool Attempt::compress_large_pieces() {
  const uint32_t n_ubatch = scene_.options.n_ubatch;
  for (uint32_t from = kStreamedTokens; from > kFirstStreamedTokens;
       from -= std::min(n_ubatch, from - kFirstStreamedTokens)) {
    if (compress_pieces(from - n_fewer())) return true;
  }
  return compress_pieces(kFirstStreamedTokens - n_fewer());
}

bool Attempt::compress_small_pieces() {
  for (uint32_t from = kFirstStreamedTokens - kFirstTokens; from > kFirstTokens; from -= kFirstTokens) {
    if (compress_pieces(from)) return true;
  }
  return compress_pieces(kFirstTokens);
}

bool Attempt::lower_to_the_end() {
  if (lower(rungs_.size())) return true;
  // What was foreseen is a little less than what is freed, or more.
  if (!rungs_.empty()) lower_all(rungs_.back());
  return fits();
}

bool Attempt::lower_for(const std::function<uint64_t(const Rung*)>& bytes_at,
                        const std::function<void(const Rung&)>& also) {
  if (scene_.account.reserve(bytes_at(nullptr))) return true;
  for (const Rung& rung : rungs_) {
    if (bytes_at(&rung) > room_after(freed_by(rung, Commits::none))) continue;
    lower_all(rung);
    also(rung);
    if (scene_.account.reserve(bytes_at(nullptr))) return true;
  }
  return false;
}

uint64_t Attempt::needed(const Pressure& pressure) const {
  const uint64_t to_compress =
      spec_.uncompressed() ? 0 : bytes_to_compress(scene_.layers, scene_.sequences, pressure.rung);
  return to_compress + bytes_of_step(scene_.layers, scene_.plan, pressure, scene_.options.n_ubatch);
}

int64_t Attempt::freed_by(SegmentId segment, const Rung& rung, bool commit) const {
  int64_t freed = 0;
  for (const auto& [index, layer] : scene_.layers.layers) freed += layer.cache->freed_by(segment, rung, commit);
  return freed;
}

int64_t Attempt::freed_by(const Rung& rung, Commits commits) const {
  int64_t freed = 0;
  scene_.sequences.for_each_segment([&](SegmentId segment) {
    freed += freed_by(segment, rung, commits == Commits::all || (commits == Commits::others && !in_step(segment)));
  });
  return freed;
}

std::vector<Attempt::Freed> Attempt::freed_by_others(const Rung& rung) const {
  std::vector<Freed> others;
  scene_.sequences.for_each_segment([&](SegmentId segment) {
    const int64_t bytes = in_step(segment) ? 0 : freed_by(segment, rung, false);
    if (bytes > 0) others.push_back({segment, bytes});
  });
  std::ranges::stable_sort(others, std::greater(), &Freed::bytes);
  return others;
}

uint64_t Attempt::room_after(int64_t freed) const {
  const uint64_t room = scene_.account.room();
  return freed >= 0 ? room + uint64_t(freed) : room - std::min(room, uint64_t(-freed));
}

bool Attempt::in_step(SegmentId segment) const {
  return std::ranges::any_of(scene_.plan.runs(), [=](const StepPlan::Run& run) { return run.segment == segment; });
}

// A prompt's next piece needs room to wait until coordinates can be frozen on it. Without, what follows is compressed
// as it is read, in the segment before.
void Attempt::continue_full(uint32_t n_tokens) {
  if (scene_.plan.n_tokens() < kFirstTokens) return;  // nor does StepPlan::move_on()
  const uint64_t room = scene_.account.room(), step = needed({spec_, budget_.pressed_from_});
  uint64_t waiting = 0;
  for (const auto& [index, layer] : scene_.layers.layers) {
    waiting +=
        uint64_t(layer.cache->growth(kMaxSegments, kFirstStreamedTokens, scene_.options.n_ubatch, false).lasting);
  }
  if (waiting && room > step) scene_.continue_full(n_tokens, (room - step) / waiting);
}

// Beside a prompt other sequences may have a token each, and cut its micro-batches so much earlier: as many fewer
// tokens do.
uint32_t Attempt::n_fewer() const {
  uint32_t n_largest = 0;
  for (const StepPlan::Run& run : scene_.plan.runs()) n_largest = std::max(n_largest, run.n);
  const uint32_t n_others = scene_.plan.n_tokens() - n_largest;
  return n_others <= scene_.options.n_ubatch / 8 ? std::min(n_others, kFirstTokens) : 0;
}

void Attempt::set_staged_in_bytes(bool on) {
  for (const auto& [index, layer] : scene_.layers.layers) layer.cache->stage_in_bytes(on);
}

// Compresses prompts of which so much was read, which may make room for all of the step in f16, or else in this step
// those that get so far.
bool Attempt::compress_pieces(uint32_t from) {
  budget_.pressed_from_.reset();
  const bool committed = commit(from);
  continue_full(kFirstStreamedTokens - n_fewer());
  if (committed && fits()) return true;
  budget_.pressed_from_ = from;
  return fits_shared();
}

// fits(), with bits shared between the heads of prompts that the step compresses.
bool Attempt::fits_shared() {
  if (!fits()) return false;
  for (const StepPlan::Run& run : scene_.plan.runs()) {
    const CommitRule rule = rule_of(spec_, run, budget_.pressed_from_);
    if (!rule.commits) continue;
    (void)scene_.layers.share_bits(run.segment, rule.from, std::min(run.n, scene_.options.n_ubatch),
                                   scene_.options.n_threads);
  }
  return fits();
}

bool Attempt::commit(uint32_t from) {
  bool done = true;
  scene_.sequences.for_each_segment([&](SegmentId segment) {
    done &= scene_.layers.share_bits(segment, from, 0, scene_.options.n_threads).ok();
    done &= scene_.layers.commit(segment, from, scene_.options.n_threads).ok();
  });
  return done;
}

bool Attempt::lower(size_t n_rungs) {
  // With what a rung gives back, larger pieces may do than those that were not enough alone.
  const std::optional<uint32_t> pressed = budget_.pressed_from_;
  std::vector<std::optional<uint32_t>> pieces;
  for (uint32_t from = kFirstStreamedTokens - n_fewer(); pressed && from > *pressed;
       from -= std::min(from, kFirstTokens))
    pieces.push_back(from);
  pieces.push_back(pressed);
  for (size_t i = 0; i < n_rungs; ++i) {
    // A smaller share needs room before it gives some back; fewer bits do not.
    const bool is_share = i < policy::n_share_rungs(spec_, rungs_);
    if (is_share && shares_need_room_) continue;
    out_of_memory_ = false;
    const std::vector<Freed> others = freed_by_others(rungs_[i]);
    const uint64_t room = room_after(freed_by(rungs_[i], Commits::none));
    for (const std::optional<uint32_t> from : pieces) {
      budget_.pressed_from_ = from;
      if (lower_enough(others, rungs_[i])) return true;
      if (out_of_memory_) shares_need_room_ |= is_share;
      if (out_of_memory_) break;
      if (needed({spec_, from, &rungs_[i]}) > room) continue;
      lower_all(rungs_[i]);
      if (fits_shared()) return true;
    }
  }
  return false;
}

// Those that give back the most come first, so that the fewest lose quality.
bool Attempt::lower_enough(std::span<const Freed> others, const Rung& rung) {
  const uint64_t step = needed({spec_, budget_.pressed_from_});
  std::vector<SegmentId> enough;
  int64_t freed = 0;
  auto next = others.begin();
  for (; next != others.end() && step > room_after(freed); ++next) {
    enough.push_back(next->segment);
    freed += next->bytes;
  }
  if (step > room_after(freed)) return false;
  if (!enough.empty()) lower_to(enough, rung);
  while (!fits_shared()) {  // what was foreseen is a little less than what is freed, or more
    if (out_of_memory_ || next == others.end()) return false;
    lower_to(std::span(&next++->segment, 1), rung);
  }
  return true;
}

void Attempt::lower_all(const Rung& rung) {
  std::vector<SegmentId> segments;
  scene_.sequences.for_each_segment([&](SegmentId segment) {
    // Segments of the step may hold nothing yet.
    if (in_step(segment) || !scene_.layers.is_empty(segment)) segments.push_back(segment);
  });
  lower_to(segments, rung);
  lowered_all_ = true;
}

void Attempt::lower_to(std::span<const SegmentId> segments, const Rung& rung) {
  // What there was no memory for waits for the next rung, or for the segments' next commit.
  out_of_memory_ = !scene_.layers.lower(segments, rung, scene_.options.n_threads).ok();
  lowest_ = rung;
  ++budget_.n_lowered_;
}

namespace {

struct Concession {
  const char* name;  ///< begins its log line
  const char* line;  ///< logged the first time; empty where it lowers: log_lowered() says what the rung is and costs
  const char* cost;  ///< in quality
  bool (Attempt::*try_it)();

  /// True if it lowers segments, for as long as they live.
  bool lowers() const { return !*line; }
};

// In the order in which they are tried: what costs less quality per byte comes first.
constexpr std::array kConcessions = {
    Concession{
        "stage in bytes",
        "where there is no room for a whole prompt in f16, the part that was read is kept in 8 bits until its end",
        "KL divergence 1.04 to 1.19 times that of f16", &Attempt::stage_in_bytes},
    Concession{
        "compress large pieces",
        "where there is no room for a whole prompt in 8 bits, the part that was read is compressed before its end",
        "as streaming prefill, docs/quality.md", &Attempt::compress_large_pieces},
    Concession{"lower shares", "", "", &Attempt::lower_shares},
    // One prompt loses before all that is held: the room it needs while it is read comes back at its end.
    Concession{"compress small pieces",
               "where there is no room for 1,024 tokens of a prompt, it is compressed in pieces of 768 to 256",
               "KL divergence up to 1.8 times that of exact prefill", &Attempt::compress_small_pieces},
    // Only where that is enough: a segment that is frozen on a prompt's first few tokens is bad for as long as it
    // lives.
    Concession{"lower bits", "", "", &Attempt::lower_bits},
    Concession{"compress immediately",
               "where there is no room for 256 tokens of a prompt, it is compressed as it is read",
               "KL divergence 4 to 11 times that of exact prefill", &Attempt::compress_at_once},
    Concession{"lower to the end", "", "", &Attempt::lower_to_the_end},
};

}  // namespace

void Budget::log_line(const Scene& scene, const std::string& line) {
  if (!scene.options.log) return;
  scene.options.log("KV budget " + format_bytes(double(limit_)) + ": " + line);
}

void Budget::log_lowered(const Scene& scene, const Rung& rung, bool all, const char* name) {
  const int64_t now = seconds_now();
  if (now - lowered_at_s_ <= kSecondsBetweenLines) return;
  lowered_at_s_ = now;
  const Spec spec = policy::lowered(scene.options.spec, rung);
  log_line(scene,
           std::string(name) + (all ? ": what is in use now is held as " : ": some of what is in use now is held as ") +
               held_as(spec) + " (" + policy::cost_of(spec) + "); what comes later as asked for, where there is room");
}

Status Budget::refuse(const Scene& scene, const std::string& what) {
  ++n_refused_;
  const std::string why = "no room for " + what + " beside " + format_bytes(double(scene.account.tightest().used())) +
                          " in use; end or shorten sequences, or raise the budget";
  const int64_t now = seconds_now();
  if (now - refused_at_s_ > kSecondsBetweenLines) log_line(scene, why);
  refused_at_s_ = now;
  return Error{ErrorCode::over_budget, "KV budget " + format_bytes(double(limit_)) + ": " + why};
}

bool Budget::was_refused(const StepPlan& plan) const {
  return std::ranges::any_of(plan.runs(), [&](const StepPlan::Run& run) {
    return !run.generates && std::ranges::find(refused_, run.sequence) != refused_.end();
  });
}

// Where a batch holds several prompts it is not known which one was too much.
void Budget::remember_refused(const StepPlan& plan) {
  std::optional<SequenceId> prompt;
  for (const StepPlan::Run& run : plan.runs()) {
    if (run.generates || run.sequence == prompt) continue;
    if (prompt) return;
    prompt = run.sequence;
  }
  if (prompt && std::ranges::find(refused_, *prompt) == refused_.end()) refused_.push_back(*prompt);
}

bool Budget::begin(const Scene& scene) {
  if (scene.account.room() == UINT64_MAX) return false;
  scene.account.end_reservation();
  const uint64_t limit = scene.account.tightest().limit();
  if (limit > limit_) refused_.clear();  // there may be room now
  limit_ = limit;
  return true;
}

void Budget::forget_refusal(SequenceId sequence) { std::erase(refused_, sequence); }

Status Budget::make_room(const Scene& scene) {
  if (!begin(scene)) return {};
  Attempt attempt(*this, scene);
  attempt.begin();
  if (attempt.fits()) return {};
  bool done = false;
  const char* lowered_by = "";
  const bool may_lower = !was_refused(scene.plan);
  if (attempt.could_fit(may_lower)) {
    for (size_t i = 0; !done && i < kConcessions.size(); ++i) {
      const Concession& concession = kConcessions[i];
      if (concession.lowers() && !may_lower) continue;
      done = (attempt.*concession.try_it)();
      if (concession.lowers()) lowered_by = concession.name;
      if (!concession.lowers() && !(said_ >> i & 1))
        log_line(scene, std::string(concession.name) + ": " + concession.line + " (quality: " + concession.cost + ")");
      said_ |= uint64_t{1} << i;
    }
  } else {
    remember_refused(scene.plan);
  }
  if (attempt.lowest()) log_lowered(scene, *attempt.lowest(), attempt.lowered_all(), lowered_by);
  if (done) return {};
  return refuse(scene, std::to_string(scene.plan.n_tokens()) + " more tokens (at least " +
                           format_bytes(double(attempt.least())) + ")");
}

Status Budget::make_room_for(const Scene& scene, const std::function<uint64_t(const Rung*)>& bytes_at,
                             const std::function<void(const Rung&)>& lower) {
  if (!begin(scene)) return {};
  Attempt attempt(*this, scene);
  const bool done = attempt.lower_for(bytes_at, lower);
  if (attempt.lowest())
    log_lowered(scene, *attempt.lowest(), attempt.lowered_all(), "lower for a copy or a saved state");
  return done ? Status() : refuse(scene, format_bytes(double(bytes_at(nullptr))) + " of saved or copied text");
}

}  // namespace mikv::context
