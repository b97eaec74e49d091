// RoPE of a layer, read off the graph: the node that made the keys.
#pragma once

#include "ggml.h"
#include "mikv/types.hpp"

namespace mikv::llama {

/// `keys`: the rows of keys that a graph stores. No angles if they are not what a RoPE node puts out, as in layers
/// without positions.
Rope rope_of(const ggml_tensor* keys);

}  // namespace mikv::llama
