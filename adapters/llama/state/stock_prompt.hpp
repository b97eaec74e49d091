// Copies a prompt from a context of mikv to one of stock llama.cpp, to measure what its cache types lose if the prompt
// was read exactly.
#pragma once

#include "llama.h"
#include "mikv/result.hpp"

namespace mikv::llama {

/// Makes the uncompressed tokens of sequence 0 of `from`, a context of mikv, the only content of `to`: a context of the
/// same model without mikv, of any K and V types. Stores rows as llama.cpp does, rotated where it rotates them. Slower
/// than loading a state, faster than reading the prompt. Errors: a model that has not exactly one cache of plain
/// positions (sliding windows, recurrent layers, M-RoPE); compressed tokens; out of memory; `to` may be empty then.
Status copy_prompt(llama_context* from, llama_context* to, ggml_type type);

}  // namespace mikv::llama
