// The ceiling on the KV payload (--kv-budget), and what is given up, in which order, to stay under it.
#pragma once

#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

class Binding;

/// The next smaller cache: first a lower share of tokens in high precision, then fewer bits in low precision. False if
/// `spec` is as small as it gets.
bool lower(Spec& spec);

}  // namespace mikv::llama
