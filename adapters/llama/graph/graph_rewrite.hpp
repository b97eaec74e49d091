// Rewriting a llama.cpp graph so that K, V and attention go through mikv.
#pragma once

#include "binding.hpp"

namespace mikv::llama {

/// Turns each SET_ROWS into a cache tensor, and each FLASH_ATTN_EXT that reads one, into an operator of `binding`,
/// pinned to the CPU. Nodes that were rewritten before stay as they are (llama.cpp reuses graphs between steps). False,
/// with the reason in binding.cache().failure(), if the graph uses the cache in a way that mikv does not know: the
/// graph must not run then, because llama.cpp's own cache memory holds nothing.
bool rewrite_graph(ggml_backend_sched_t scheduler, ggml_cgraph* graph, Binding& binding);

}  // namespace mikv::llama
