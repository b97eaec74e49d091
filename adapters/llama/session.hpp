// Sessions: the state of a llama.cpp context, or of one of its sequences, with the tiers as they are stored.
//
// A saved state is a container (src/session/container.hpp): the identity of model and spec, the prompt's tokens if
// there are any, llama.cpp's own words for its cells, and the segments of every layer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "llama.h"
#include "mikv/result.hpp"

namespace mikv::llama {

class Binding;

/// `sequence` may be kAllSequences. Errors: out of memory, llama.cpp cannot write its state.
Result<std::vector<uint8_t>> save_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags,
                                        std::span<const llama_token> tokens = {});

/// Verifies everything first; on an error the cache is as before, save where llama.cpp has no room for the tokens: the
/// sequence is empty then. Errors, by name: another model, spec or version, damage, no room.
Status load_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags, std::span<const uint8_t> bytes);

/// The tokens saved with a state. Errors as load_state's that concern the container.
Result<std::vector<llama_token>> saved_tokens(std::span<const uint8_t> bytes);

}  // namespace mikv::llama
