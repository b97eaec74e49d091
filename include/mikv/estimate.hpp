// Estimates: what a cache of some length takes, before it is tried.
//
// A context is filled with random keys and values, and its bytes are counted. The same code stores the real ones, by
// the same rules. Takes some hundredths of a second per 2,000 tokens of a layer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "mikv/export.h"
#include "mikv/result.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"

namespace mikv {

/// What one layer took.
struct MeasuredLayer {
  MemoryUsage held;         ///< with the prompt compressed
  uint64_t peak_bytes = 0;  ///< while the prompt was read, without transient memory
};

/// Stores a prompt of n_tokens random tokens, and the one that ends it, in a layer of a context of n_cells cells.
/// before_step: called before each 512 tokens, or null; may throw, to stop early. Any thread; memory for the whole
/// layer is allocated meanwhile. Errors: a shape that add_layer() refuses; out of memory.
MIKV_API Result<MeasuredLayer> measure_layer(const LayerShape& shape, const Spec& spec, uint32_t n_tokens,
                                             uint64_t n_cells, const std::function<void()>& before_step = {});

/// A layer, and how many tokens it is to hold: fewer than others where it has a sliding window.
struct LayerLoad {
  LayerShape shape;
  uint64_t n_tokens = 0;
};

/// Bytes of all layers of a sequence.
struct CacheBytes {
  double held = 0.0;    ///< with the prompt compressed
  double prompt = 0.0;  ///< the most while the prompt is read
};

/// Measures up to n_measured tokens, 2 or more, of each kind of layer. Beyond them bytes grow in proportion, so that
/// any length is estimated in the same time. Errors, threads, before_step: as measure_layer().
MIKV_API Result<CacheBytes> estimate_cache(std::span<const LayerLoad> layers, const Spec& spec, uint32_t n_measured,
                                           const std::function<void()>& before_step = {});

}  // namespace mikv
