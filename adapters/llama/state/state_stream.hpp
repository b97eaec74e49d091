// llama.cpp's own part of a saved state: which cells hold which token of which sequence, and the state of recurrent
// layers. K and V are left out (state/cell_capture.hpp).
#pragma once

#include "llama.h"
#include "mikv/context.hpp"
#include "mikv/result.hpp"

namespace mikv::llama {

/// Reads the state of a sequence, or of all.
Result<EngineState> read_state(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags);

/// Loads it. Returns the cells, by layer, that llama.cpp chose for the tokens, in the order of the stream.
Result<CellsByLayer> write_state(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags,
                                 const EngineState& state);

}  // namespace mikv::llama
