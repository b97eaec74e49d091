// llama.cpp's calls that save and load states, for contexts of ours. Like llama.cpp's they return 0 on failure; the
// reason is printed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "binding.hpp"

namespace mikv::llama {

/// The state as bytes, kept until the next step or change, because programs ask for its size first. Empty on failure.
const std::vector<uint8_t>& state_bytes(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags);
size_t copy_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags, uint8_t* to, size_t size);
size_t take_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags, std::span<const uint8_t> bytes);

/// Returns the bytes of the file.
size_t save_file(Binding& binding, llama_seq_id sequence, const char* path, std::span<const llama_token> tokens);
/// If `tokens` is null, only sets *n_tokens, as llama.cpp does.
size_t load_file(Binding& binding, llama_seq_id sequence, const char* path, llama_token* tokens, size_t capacity,
                 size_t* n_tokens);

}  // namespace mikv::llama
