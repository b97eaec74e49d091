// RoPE of a layer, read off the node of the graph that made the keys.
#pragma once

#include "ggml.h"
#include "mikv/types.hpp"

namespace mikv::llama {

/// keys: the rows of keys that a graph stores. No angles if they are not the output of a RoPE node.
Rope rope_of(const ggml_tensor* keys);

}  // namespace mikv::llama
