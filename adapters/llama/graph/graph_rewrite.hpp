// Rewriting a llama.cpp graph so that K, V and attention go through mikv.
#pragma once

#include "binding.hpp"

namespace mikv::llama {

/// Turns each SET_ROWS into a cache tensor, and each FLASH_ATTN_EXT that reads one, into an operator of `binding`,
/// pinned to the CPU. Rewritten nodes stay as they are (llama.cpp reuses graphs between steps). Returns false, with the
/// reason in binding.cache().failure(), if the graph uses the cache in a way unknown to mikv. Such a graph must not
/// run, because llama.cpp's own cache memory is empty.
bool rewrite_graph(ggml_backend_sched_t scheduler, ggml_cgraph* graph, Binding& binding);

}  // namespace mikv::llama
