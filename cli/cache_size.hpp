// What a cache of some length takes: a context of mikv is filled with random keys and values, and its bytes are
// counted. The same code stores the real ones, by the same rules.
#pragma once

#include <cstdint>

#include "engine/engine.hpp"
#include "mikv/context.hpp"

namespace mikv::cli {

struct CacheSize {
  MemoryUsage held;         ///< with the prompt compressed
  uint64_t peak_bytes = 0;  ///< while the prompt was read, without what is needed for a moment only
};

/// Of one layer. n_tokens: of the prompt; n_cells: that the context may hold.
CacheSize measure_cache(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells);

/// Of a cache type of stock llama.cpp, llama:TYPE: plain arithmetic, codes and the scales of their blocks.
double stock_bits_per_element(const llama::KvChoice& choice);

/// Tokens that measure_cache() reads at once.
inline constexpr uint32_t kMeasuredChunk = 512;

}  // namespace mikv::cli
