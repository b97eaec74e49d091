// Rows: preparing queries for the coordinates of a tier, and turning a softmax state into outputs.
#pragma once

#include "layer/layer_impl.hpp"
#include "layer/workspace.hpp"

namespace mikv::attention {

/// The query rows of one item: tokens [first_token, first_token + n_tokens) x the query heads of one KV head.
struct QueryTile {
  const LayerAttendArgs& args;
  const LayerCache::Impl& layer;
  uint32_t kv_head = 0, first_token = 0, n_tokens = 0;

  uint32_t group() const { return layer.shape.n_heads / layer.shape.n_kv_heads; }
  uint32_t n_rows() const { return n_tokens * group(); }
  uint32_t head_of(uint32_t row) const { return kv_head * group() + row % group(); }
  const float* query(uint32_t row) const {
    return args.q + (first_token + row / group()) * args.q_token_stride + head_of(row) * args.q_head_stride;
  }
  float* output(uint32_t row) const {
    return args.out + (first_token + row / group()) * args.out_token_stride + head_of(row) * args.out_head_stride;
  }
};

/// Queries in the engine's own coordinates, for staged tokens.
Rows prepare_raw(const QueryTile& tile, PreparedRows& memory);
/// Queries in a segment's coordinates, for its hi and lo tiers.
Rows prepare_for_tier(const QueryTile& tile, const codec::Axes& key, PreparedRows& memory);
/// The same for the outlier channels of a layer that holds them as halves (outlier=f16).
Rows prepare_outliers(const QueryTile& tile, const codec::Axes& key, PreparedRows& memory);
/// The same rows with a bias, kept in `memory`, for a tier whose keys have an error of known size
/// (codec/expected_error.hpp).
Rows with_expected_error(const QueryTile& tile, const codec::Axes& key, const codec::BlockLayout& layout, Rows rows,
                         PreparedRows& memory);

/// An empty state for n rows: identity of merge().
void reset(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows);
/// Views for the kernels, in the coordinates of staged tokens and of the tiers of a segment. They share the maximum.
/// tier_view calls fold_tiers() where the last tiers had other coordinates. `value` must outlive the state.
State raw_view(RowState& state, const LayerCache::Impl& layer);
State tier_view(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows, const codec::Axes& value);
/// Adds the sums of tiers to those of staged tokens, in the coordinates of the latter.
void fold_tiers(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows);
/// into = softmax over what either has seen. Both are over the same segments.
void merge(RowState& into, const RowState& from, uint32_t n_rows);

/// Writes the outputs of the tile, and 1 / softmax denominator to inverse_sum[row] (0 for a row that saw nothing).
void finish(const QueryTile& tile, RowState& state, std::vector<float>& inverse_sum);

}  // namespace mikv::attention
