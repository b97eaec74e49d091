// llama.cpp's own words for the state of a context: which cells hold which token of which sequence, and what recurrent
// layers remember. K and V are not in them (cell_capture.hpp).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "cell_capture.hpp"
#include "llama.h"
#include "mikv/result.hpp"
#include "session/saved_context.hpp"

namespace mikv::llama {

/// Everything, instead of one sequence.
inline constexpr llama_seq_id kAllSequences = -1;

struct StateStream : session::EngineStream {
  std::map<int, std::vector<StreamCell>> cells;  ///< by layer, in the order of the stream
};

/// Reads the state of a sequence, or of all.
Result<StateStream> read_state(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags);

/// Loads it. Returns the cells, by layer, that llama.cpp chose for the tokens, in the order of the stream.
Result<std::map<int, std::vector<StreamCell>>> write_state(llama_context* context, llama_seq_id sequence,
                                                           llama_state_seq_flags flags, const StateStream& state);

}  // namespace mikv::llama
