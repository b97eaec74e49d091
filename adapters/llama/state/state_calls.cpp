#include "state/state_calls.hpp"

#include <algorithm>

#include "mikv/atomic_file.hpp"
#include "say.hpp"

namespace mikv::llama {
namespace {

// States stay in the program's memory: llama.cpp's own on-device store would keep K and V rows, which are not there.
llama_state_seq_flags in_memory(llama_state_seq_flags flags) {
  return flags & ~llama_state_seq_flags(LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
}

bool is_partial(llama_state_seq_flags flags) { return flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY; }

}  // namespace

const std::vector<uint8_t>& state_bytes(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags) {
  Binding::SavedState& saved = binding.saved_state();
  flags = in_memory(flags);
  if (!saved.bytes.empty() && saved.sequence == sequence && saved.flags == flags) return saved.bytes;
  saved = {};
  auto bytes = binding.cache().save(sequence, {}, is_partial(flags));
  if (!bytes) {
    say_failed("the state cannot be saved", bytes.message());
  } else {
    saved = {sequence, flags, std::move(bytes).value()};
  }
  return saved.bytes;
}

size_t copy_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags, uint8_t* to, size_t size) {
  const std::vector<uint8_t>& bytes = state_bytes(binding, sequence, flags);
  const size_t n = bytes.size();
  if (n > size) {
    say_failed("the state cannot be saved",
               "the buffer has " + std::to_string(size) + " bytes, the state " + std::to_string(n));
    return 0;
  }
  std::copy(bytes.begin(), bytes.end(), to);
  binding.saved_state() = {};
  return n;
}

size_t take_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags,
                  std::span<const uint8_t> bytes) {
  binding.saved_state() = {};
  const Status status = binding.cache().load(sequence, bytes, is_partial(flags));
  if (status) return bytes.size();
  say_failed("the state cannot be loaded", "it is " + status.message());
  if (!is_partial(flags)) return 0;
  // llama.cpp's server ends when a part of a sequence (a checkpoint) is refused. The sequence is, with its next step.
  binding.cache().invalidate(sequence, status.error());
  return bytes.size();
}

size_t save_file(Binding& binding, llama_seq_id sequence, const char* path, std::span<const llama_token> tokens) {
  const auto bytes = binding.cache().save(sequence, tokens);
  const Status status = bytes ? write_file(path, bytes.value()) : Status(bytes.error());
  if (status) return bytes.value().size();
  say_failed("the session cannot be saved", status.message());
  return 0;
}

size_t load_file(Binding& binding, llama_seq_id sequence, const char* path, llama_token* tokens, size_t capacity,
                 size_t* n_tokens) {
  binding.saved_state() = {};
  const auto refuse = [&](const std::string& why) {
    say_failed("the session cannot be loaded", why);
    return size_t{0};
  };
  const auto bytes = read_file(path);
  if (!bytes) return refuse(bytes.message());
  const auto saved = Context::saved_tokens(bytes.value());
  if (!saved) return refuse(std::string(path) + " is " + saved.message());
  *n_tokens = saved.value().size();
  if (!tokens) return bytes.value().size();
  if (saved.value().size() > capacity) {
    return refuse(std::string(path) + " has " + std::to_string(saved.value().size()) + " tokens, more than the " +
                  std::to_string(capacity) + " that fit the context");
  }
  if (const Status status = binding.cache().load(sequence, bytes.value()); !status) {
    return refuse(std::string(path) + " is " + status.message());
  }
  std::copy(saved.value().begin(), saved.value().end(), tokens);
  return bytes.value().size();
}

}  // namespace mikv::llama
