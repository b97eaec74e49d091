// What a cache of some length takes: a context of mikv is filled with random keys and values, and its bytes are
// counted. The same code stores the real ones, by the same rules.
#pragma once

#include <cstdint>
#include <functional>

#include "mikv/context.hpp"

namespace mikv::llama {

struct CacheSize {
  MemoryUsage held;         ///< with the prompt compressed
  uint64_t peak_bytes = 0;  ///< while the prompt was read, without what is needed for a moment only
};

/// Of one layer. n_tokens: of the prompt; n_cells: that the context may hold. before_step: may throw, to stop early.
/// Errors: the Context's.
Result<CacheSize> measure_cache(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells,
                                const std::function<void()>& before_step = {});

/// Tokens that measure_cache() reads at once.
inline constexpr uint32_t kMeasuredChunk = 512;

/// Bytes of one layer. Beyond the tokens that are measured they grow in proportion.
struct CacheBytes {
  double held = 0.0;    ///< with the prompt compressed
  double prompt = 0.0;  ///< most, while the prompt is read
};

/// As measure_cache(), of any length: measures `n_measured` tokens of it at most.
Result<CacheBytes> estimate_cache(const LayerShape& shape, const Spec& spec, uint64_t n_tokens, uint32_t n_measured,
                                  const std::function<void()>& before_step = {});

}  // namespace mikv::llama
