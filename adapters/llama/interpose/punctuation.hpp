// Punctuation: which tokens of a model's vocabulary are punctuation, for policies that keep it.
#pragma once

#include <vector>

#include "llama.h"

namespace mikv::llama {

/// By token id: true if its text, without blanks at its ends, is ASCII punctuation and nothing else. A control token is
/// none.
std::vector<bool> punctuation_of(const llama_model* model);

}  // namespace mikv::llama
