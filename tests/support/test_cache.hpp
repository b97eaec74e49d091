// Helpers around LayerCache: making one, keys and values to put in, reading it back.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "layer/layer_cache.hpp"
#include "layer/share_bits.hpp"
#include "test_data.hpp"

namespace mikv::test {

/// K and V of some tokens, as an engine hands them over: rows of all KV heads, with a gap after each row.
struct Tokens {
  LayerShape shape;
  size_t n = 0;
  size_t k_stride = 0, v_stride = 0;  ///< floats
  std::vector<float> k, v;

  Tokens(const LayerShape& shape, size_t n, Random& random, size_t gap = 0);
  float* key(size_t token, uint32_t kv_head) { return &k[token * k_stride + size_t{kv_head} * shape.head_dim_k]; }
  float* value(size_t token, uint32_t kv_head) { return &v[token * v_stride + size_t{kv_head} * shape.head_dim_v]; }
};

/// A cache of this spec; throws std::runtime_error (which fails the test) if the spec or the shape is refused.
std::unique_ptr<LayerCache> make_layer(const LayerShape& shape, std::string_view spec, uint32_t max_cells = kMaxCells);

/// n consecutive cells from `first`.
std::vector<Cell> cell_range(Cell first, size_t n);

/// Puts all tokens; throws if refused.
void put(LayerCache& layer, SegmentId segment, std::span<const Cell> cells, const Tokens& tokens);
/// Commits; throws if refused.
void commit(LayerCache& layer, SegmentId segment);
/// mikv::share_bits() among the heads of this layer alone.
inline Status share_bits(LayerCache& layer, SegmentId segment) {
  LayerCache* const alone = &layer;
  return mikv::share_bits(std::span(&alone, 1), segment);
}

/// dump() in the order of cells, so that entry i is cell i of cell_range().
std::vector<StoredToken> sorted_dump(const LayerCache& layer, SegmentId segment, uint32_t kv_head);

struct TierCounts {
  uint64_t staged = 0, hi = 0, lo = 0, evicted = 0;
  uint64_t total() const { return staged + hi + lo + evicted; }
};
TierCounts count_tiers(const std::vector<StoredToken>& tokens);

/// The spec of a test as a part of its name.
std::string name_of_spec(const testing::TestParamInfo<const char*>& parameter);

}  // namespace mikv::test
