#include "arms.hpp"

#include <algorithm>

#include "check.hpp"
#include "stopwatch.hpp"

namespace mikv::cli {
namespace {

/// What exact prefills have in common: nothing is compressed before end_prompt(), and this spec records what most
/// others need (importance scores and query statistics).
llama::KvChoice recording_choice() { return unwrap(llama::KvChoice::parse("mikv")); }

}  // namespace

Arms::Arms(const llama::Model& model, std::vector<llama::KvChoice> choices, llama::EngineOptions options)
    : model_(model), choices_(std::move(choices)), options_(std::move(options)), own_(choices_.size()) {
  options_.rewindable = true;
  if (!options_.should_stop) options_.should_stop = interrupted;
}

bool Arms::uses_shared_seat(size_t arm) const {
  return !choices_[arm].stock() && choices_[arm].spec->prefill != Prefill::streaming &&
         choices_[arm].spec->staged == Format::f16 && recording_choice().spec->can_start(*choices_[arm].spec);
}

size_t Arms::n_prefills() const {
  size_t n_shared = 0;
  for (size_t arm = 0; arm < size(); ++arm) n_shared += uses_shared_seat(arm) || choices_[arm].takes_prompt;
  return size() - n_shared + (n_shared ? 1 : 0);
}

void Arms::set_prompt(std::vector<llama::Token> prompt) {
  prompt_ = std::move(prompt);
  shared_.has_prompt = false;
  for (Seat& seat : own_) seat.has_prompt = false;
}

Arms::Seat& Arms::seat_of(size_t arm) {
  if (uses_shared_seat(arm)) return shared_seat();
  Seat& seat = own_[arm];
  if (!seat.context) seat.context = unwrap(llama::EngineContext::create(model_, choices_[arm], options_));
  if (!seat.has_prompt && choices_[arm].takes_prompt) take_prompt(seat);
  if (!seat.has_prompt) prefill(seat);
  return seat;
}

Arms::Seat& Arms::shared_seat() {
  if (!shared_.context) {
    shared_.context = unwrap(llama::EngineContext::create(model_, recording_choice(), options_));
    shared_.blank = unwrap(shared_.context->checkpoint());
  }
  if (!shared_.has_prompt) prefill(shared_);
  return shared_;
}

void Arms::take_prompt(Seat& seat) {
  Seat& from = shared_seat();
  check(from.context->restore(from.checkpoint, *recording_choice().spec));
  const Stopwatch watch;
  check(seat.context->take_prompt(*from.context));
  seat.logits = from.logits;
  seat.prefill_s = from.prefill_s + watch.seconds();
  seat.compression_s = 0.0;
  seat.has_prompt = true;
}

void Arms::prefill(Seat& seat) {
  seat.context->reset();
  seat.checkpoint = {};  // frees the last prompt's before the next one is stored
  // The last arm left its own spec, which may record less.
  if (&seat == &shared_) check(seat.context->restore(seat.blank, *recording_choice().spec));
  const Stopwatch watch;
  size_t reported = 0;
  check(seat.context->prefill(prompt_, [&](size_t done) {
    if (on_prefill) on_prefill(done - reported);
    reported = done;
  }));
  const auto logits = seat.context->logits();
  seat.logits.assign(logits.begin(), logits.end());
  seat.prefill_s = watch.seconds();
  seat.compression_s = 0.0;
  if (&seat == &shared_) seat.checkpoint = unwrap(seat.context->checkpoint());
  seat.has_prompt = true;
}

ArmStart Arms::start(size_t arm) {
  throw_if_interrupted();
  Seat& seat = seat_of(arm);
  if (uses_shared_seat(arm)) {
    check(seat.context->restore(seat.checkpoint, *choices_[arm].spec));
  } else {
    check(seat.context->truncate(uint32_t(prompt_.size())));
  }
  const Stopwatch compression;
  check(seat.context->end_prompt());
  const double seconds = compression.seconds();
  // An arm's own seat is compressed with its first start; later ones find that done.
  seat.compression_s = uses_shared_seat(arm) ? seconds : std::max(seat.compression_s, seconds);
  return {seat.context.get(), seat.logits, seat.prefill_s + seat.compression_s, seat.compression_s,
          seat.context->memory_usage()};
}

}  // namespace mikv::cli
