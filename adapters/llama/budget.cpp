#include "budget.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "binding.hpp"
#include "byte_size.hpp"
#include "registry.hpp"

namespace mikv::llama {
namespace {

// At equal bytes, fewer tokens than this in high precision are worse than fewer bits for the others (docs/adr/0012):
// only when those are at their least does the share go on to its own.
constexpr double kFairKeep = 0.04, kLeastKeep = 0.01, kKeepStep = 0.9;
// Below 2 bits answers fall apart (docs/frontier.md).
constexpr double kLeastBits = 2.0, kBitsStep = 0.25;

// What becomes of staged tokens takes no more than this part of what they take in f16; all of that in bytes.
constexpr uint64_t kCompressedShare = 2;

// How much of its codes in hi a demoted token gives back, with its scores and less its codes in lo.
constexpr double kHiCodesFreed = 0.75;

// What a cache of so many bits costs in quality: mean KL divergence to the full cache over our three models,
// docs/frontier.md.
const char* quality_of(const Spec& spec) {
  const double bits = spec.mixed() ? spec.bits : format_bits(spec.lo);
  if (bits >= 3.5) return "mean KL divergence as mikv-hq, .002 to .005";
  if (bits >= 2.7) return "mean KL divergence as mikv, .004 to .01";
  if (bits >= 2.2) return "mean KL divergence between mikv and mikv-max, .008 to .02";
  return "mean KL divergence as mikv-max, .015 to .05";
}

// How many tokens of a prompt, at most n_most, are staged when a micro-batch ends, and wait for the next. Alone, a
// prompt is cut every n_ubatch tokens. Others in the batch are cut with it, before it (then its own cuts come earlier
// by as many), or share micro-batches with it in equal parts (then they come later by as many).
uint32_t most_waiting(uint32_t n_most, uint32_t n_others, uint32_t n_ubatch) {
  const uint32_t over = n_most % n_ubatch;
  return n_ubatch - over <= n_others ? n_most : n_most - over + std::min(over, n_others);
}

}  // namespace

bool lower(Spec& spec) {
  if (spec.uncompressed() || spec.importance == Importance::full) return false;
  const auto keep_less = [&spec](double least) { spec.keep = std::max(least, spec.keep * kKeepStep); };
  if (spec.keep > kFairKeep) {
    keep_less(kFairKeep);
  } else if (spec.mixed() && spec.bits > kLeastBits) {
    spec.bits = std::max(kLeastBits, spec.bits - kBitsStep);
  } else if (!spec.mixed() && spec.lo != Format::evict && format_bits(spec.lo) > uint32_t(kLeastBits)) {
    spec.lo = format_bits(spec.lo) > 3 ? Format::int3 : Format::int2;
  } else if (spec.keep > kLeastKeep) {
    keep_less(kLeastKeep);
  } else {
    return false;
  }
  return true;
}

uint64_t Binding::bytes_of_step() const {
  int64_t lasting = 0;
  uint64_t transient = 0;
  std::map<SegmentId, uint32_t> tokens;
  for (const StepPlan::Run& run : plan_.runs()) tokens[run.segment] += run.n;
  // Layers store, attend and compress one after the other.
  for (const auto& [index, layer] : layers_) {
    uint64_t of_layer = 0;
    for (const auto& [segment, n] : tokens) {
      uint32_t from = 0;
      const bool compressed =
          std::ranges::all_of(plan_.runs(), [&, segment = segment, n = n](const StepPlan::Run& run) {
            if (run.segment != segment) return true;
            from = std::max(from, commit_from(run));
            return commits(run) && commits_from(commit_from(run), *layer.cache, segment, n);
          });
      const LayerCache::Growth growth = layer.cache->growth(segment, n, n_ubatch_, compressed);
      int64_t waiting = 0;
      // What micro-batches put before there are `from` tokens waits, in all layers, until one after the other
      // compresses them.
      if (compressed && !commits_from(from, *layer.cache, segment, 1)) {
        const uint32_t n_waiting =
            most_waiting(uint32_t(from - layer.cache->n_staged(segment) - 1), plan_.n_tokens() - n, n_ubatch_);
        waiting = layer.cache->growth(segment, n_waiting, n_ubatch_, false).lasting;
      }
      lasting += waiting > 0 ? std::max(waiting, growth.lasting) : growth.lasting;
      of_layer += growth.transient + uint64_t(waiting) / (staged_in_bytes_ ? 1 : kCompressedShare);
    }
    transient = std::max(transient, of_layer);
  }
  return uint64_t(std::max<int64_t>(0, lasting)) + transient;
}

int32_t Binding::make_room() {
  if (!budget_) return 0;
  const auto missing = [&]() -> uint64_t {
    const MemoryUsage usage = Registry::get().totals().usage;
    const uint64_t tiers = tier_bytes(), other = usage.total() > tiers ? usage.total() - tiers : 0;
    set_memory_limit(budget_ > other ? budget_ - other : 1);
    // What is staged can be compressed only while there is room for what becomes of a layer's share of it.
    const uint64_t to_compress = spec_.uncompressed() ? 0
                                                      : usage.staged / std::max<size_t>(1, layers_.size()) /
                                                            (staged_in_bytes_ ? 1 : kCompressedShare);
    const uint64_t needed = usage.total() + to_compress + bytes_of_step();
    return needed - std::min(needed, budget_);
  };
  const auto fits = [&] { return missing() == 0; };
  const auto commit = [&](uint32_t from) {
    bool done = true;
    sequences_.for_each_segment([&](SegmentId segment) {
      share_bits(segment, from);
      for (const auto& [index, layer] : layers_) done &= layer.cache->commit(segment, from).ok();
    });
    return done;
  };
  const auto lower_once = [&] {
    Spec next = spec_;
    if (!lower(next)) return false;
    for (auto& [index, layer] : layers_) {
      if (const Status status = layer.cache->lower(next.keep, next.mixed() ? next.bits : format_bits(next.lo)); !status)
        break;
    }
    spec_ = next;
    ++n_lowered_;
    std::fprintf(
        stderr, "mikv: KV budget %s: %.1f %% of the tokens in high precision, the others in %s%s from now on (%s)\n",
        format_bytes(double(budget_)).c_str(), 100.0 * spec_.keep, std::string(format_name(spec_.lo)).c_str(),
        spec_.mixed() ? (" of " + std::to_string(spec_.bits).substr(0, 5) + " bits").c_str() : "", quality_of(spec_));
    return true;
  };
  const auto stage_in_bytes = [&](bool on) {
    if (on && !staged_in_bytes_) {
      std::fprintf(stderr,
                   "mikv: KV budget %s: where there is no room for a whole prompt in f16, what was read of it waits "
                   "for its end in 8 bits "
                   "(quality: next to none lost)\n",
                   format_bytes(double(budget_)).c_str());
    }
    staged_in_bytes_ |= on;
    for (const auto& [index, layer] : layers_) layer.cache->stage_in_bytes(on);
  };
  // Where it is enough: a prompt is then compressed at its end, and a segment that is frozen on a prompt's first few
  // tokens would be bad for as long as it lives.
  const auto smaller_share_does = [&] {
    const auto may_do = [&] {
      const double gone = 1.0 - kFairKeep / spec_.keep;
      return gone > 0.0 && double(missing()) < kHiCodesFreed * gone * double(Registry::get().totals().usage.hi);
    };
    while (may_do() && lower_once()) {
      if (fits()) return true;
    }
    return false;
  };
  pressed_from_.reset();
  stage_in_bytes(false);
  if (fits()) return 0;
  if (!spec_.uncompressed()) {
    stage_in_bytes(true);
    if (fits()) return 0;
    if (!was_pressed_ && spec_.prefill == Prefill::exact) {
      std::fprintf(stderr,
                   "mikv: KV budget %s: where there is no room for a whole prompt in 8 bits, what was read of it is "
                   "compressed before its "
                   "end (quality: streaming prefill, docs/frontier.md)\n",
                   format_bytes(double(budget_)).c_str());
    }
    was_pressed_ = true;
    // Beside a prompt other sequences may have a token each, and cut its micro-batches so much earlier: by as much
    // fewer tokens do.
    uint32_t n_largest = 0;
    for (const StepPlan::Run& run : plan_.runs()) n_largest = std::max(n_largest, run.n);
    const uint32_t n_others = plan_.n_tokens() - n_largest, n_fewer = n_others <= n_ubatch_ / 8 ? n_others : 0;
    // Compresses prompts of which so much was read, which may make room for all of the step in f16, or else in this
    // step those that get so far.
    const auto press = [&](uint32_t from) {
      pressed_from_.reset();
      const bool committed = commit(from);
      move_on(kFirstStreamedTokens - n_fewer);
      if (committed && fits()) return true;
      pressed_from_ = from;
      if (!fits()) return false;
      for (const StepPlan::Run& run : plan_.runs())
        share_bits(run.segment, commit_from(run), std::min(run.n, n_ubatch_));
      return fits();
    };
    // The more of a prompt is compressed at once, the better.
    for (uint32_t from = kStreamedTokens; from > kFirstStreamedTokens;
         from -= std::min(n_ubatch_, from - kFirstStreamedTokens)) {
      if (press(from - n_fewer)) return 0;
    }
    if (press(kFirstStreamedTokens - n_fewer)) return 0;
    if (smaller_share_does()) return 0;
    for (const uint32_t from : {kFirstTokens, 0u}) {
      if (press(from)) return 0;
    }
  }
  while (lower_once()) {
    if (fits()) return 0;
  }
  ++n_refused_;
  const Error error{"KV budget " + format_bytes(double(budget_)) + " is used up (" +
                    format_bytes(double(Registry::get().totals().usage.total())) + "): no room for " +
                    std::to_string(plan_.n_tokens()) + " more tokens; end or shorten contexts, or raise --kv-budget"};
  // Programs try again with less, many times a second.
  const auto now = std::chrono::steady_clock::now();
  if (n_refused_ == 1 || now - refused_at_ > std::chrono::seconds(10)) {
    std::fprintf(stderr, "mikv: %s\n", error.message.c_str());
    refused_at_ = now;
  }
  return 1;  // llama_decode's code for a cache that is full: programs free what they can and try less
}

}  // namespace mikv::llama
