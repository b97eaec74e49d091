// A prompt of a context of mikv, handed to a context of stock llama.cpp: what its cache types lose when the prompt was
// read exactly.
#pragma once

#include "llama.h"
#include "mikv/result.hpp"

namespace mikv::llama {

/// Makes the tokens of sequence 0 of `from`, which mikv keeps and has not compressed yet, the only content of `to`: a
/// context of the same model without mikv, whose K and V types may be any. Rows are stored as llama.cpp stores them,
/// rotated where it rotates them. Slow next to reading a state, fast next to reading the prompt. Errors: a model with
/// other than one cache of plain positions (sliding windows, recurrent layers, M-RoPE), compressed tokens, out of
/// memory; `to` may be empty then.
Status copy_prompt(llama_context* from, llama_context* to, ggml_type type);

}  // namespace mikv::llama
