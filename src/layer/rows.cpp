#include "layer/rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "codec/expected_error.hpp"

namespace mikv::attention {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

uint32_t acc_stride(const LayerCache::Impl& layer) { return layer.layouts->staged.tiles_v * kLanes; }
uint32_t n_groups_v(const LayerCache::Impl& layer) {
  return (layer.shape.head_dim_v - n_outlier_channels(layer.spec)) / layer.tier_group_v;
}
uint32_t zeros_stride(const LayerCache::Impl& layer) { return n_groups_v(layer) * kLanes; }

Rows prepare(const QueryTile& tile, const Geometry& geometry, const codec::Axes& key, bool bytes,
             PreparedRows& memory) {
  const size_t n_rows = tile.n_rows(), n_pairs = geometry.pairs_k.size();
  memory.q.resize(n_rows * n_pairs * kLanes);
  memory.bias.resize(n_rows);
  memory.q_sums.resize(n_rows * geometry.groups_k);
  Rows rows{tile.n_rows(), memory.q.data(), memory.bias.data(), memory.q_sums.data()};
  if (bytes) {
    memory.q_integers.resize(n_rows * n_pairs * kQueryIntegerBytes);
    memory.q_scales.resize(n_rows * geometry.groups_k);
    rows.q_integers = memory.q_integers.data();
    rows.q_scales = memory.q_scales.data();
  }
  for (uint32_t r = 0; r < rows.n; ++r) {
    kernels().prepare_row(geometry, key, tile.query(r), tile.layer.shape.head_dim_k, tile.args.scale, r, rows);
  }
  return rows;
}

void merge_part(std::vector<float>& into, const std::vector<float>& from, uint32_t n_rows, uint32_t row, float keep,
                float add) {
  const size_t stride = into.size() / n_rows;
  for (size_t i = row * stride; i < (row + 1) * stride; ++i) into[i] = into[i] * keep + from[i] * add;
}

}  // namespace

Rows prepare_raw(const QueryTile& tile, PreparedRows& memory) {
  static const codec::Axes kAsTheyAre;
  return prepare(tile, tile.layer.raw_geometry, kAsTheyAre, false, memory);
}

Rows prepare_for_tier(const QueryTile& tile, const codec::Axes& key, PreparedRows& memory) {
  return prepare(tile, tile.layer.tier_geometry, key, kernels().multiplies_integers && tile.layer.layouts->quantised(),
                 memory);
}

Rows prepare_outliers(const QueryTile& tile, const codec::Axes& key, PreparedRows& memory) {
  return prepare(tile, tile.layer.outlier_geometry, key, false, memory);
}

Rows with_expected_error(const QueryTile& tile, const codec::Axes& key, const codec::BlockLayout& layout, Rows rows,
                         PreparedRows& memory) {
  if (!layout.mixed()) return rows;
  const float scale = tile.args.scale;
  memory.errors.resize(layout.dim_k);
  codec::expected_key_errors(key, layout, memory.errors.data());
  memory.bias_with_error.resize(rows.n);
  for (uint32_t r = 0; r < rows.n; ++r) {
    const float* q = tile.query(r);
    constexpr uint32_t kSums =
        8;  // side by side, which the compiler may not do with one; dimensions are multiples of 8
    float sums[kSums] = {};
    for (uint32_t c = 0; c < layout.dim_k; c += kSums) {
      for (uint32_t i = 0; i < kSums; ++i) sums[i] += q[c + i] * q[c + i] * memory.errors[c + i];
    }
    memory.bias_with_error[r] = rows.bias[r] + 0.5f * scale * scale * std::accumulate(sums, sums + kSums, 0.0f);
  }
  rows.bias = memory.bias_with_error.data();
  return rows;
}

void reset(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows) {
  const bool apart = layer.values_transformed();
  state.max.assign(padded_rows(n_rows), kHidden);
  state.sum.assign(size_t{n_rows} * kLanes, 0.0f);
  state.acc.assign(size_t{n_rows} * acc_stride(layer), 0.0f);
  state.tier_sum.assign(apart ? state.sum.size() : 0, 0.0f);
  state.tier_acc.assign(apart ? state.acc.size() : 0, 0.0f);
  state.zeros.assign(size_t{n_rows} * zeros_stride(layer), 0.0f);
  state.tier_axes = nullptr;
}

State raw_view(RowState& state, const LayerCache::Impl& layer) {
  State view{state.max.data(),   state.sum.data(),  state.acc.data(),
             state.zeros.data(), acc_stride(layer), zeros_stride(layer)};
  if (layer.values_transformed()) {
    view.other_acc = state.tier_acc.data();
    view.other_sum = state.tier_sum.data();
  }
  return view;
}

State tier_view(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows, const codec::Axes& value) {
  State view = raw_view(state, layer);
  if (!layer.values_transformed()) return view;
  if (state.tier_axes != &value) fold_tiers(state, layer, n_rows);
  state.tier_axes = &value;
  std::swap(view.acc, view.other_acc);
  std::swap(view.sum, view.other_sum);
  return view;
}

void fold_tiers(RowState& state, const LayerCache::Impl& layer, uint32_t n_rows) {
  const bool apart = layer.values_transformed();
  if (apart && !state.tier_axes) return;
  const uint32_t dim = layer.shape.head_dim_v, group = layer.tier_group_v, first = n_outlier_channels(layer.spec);
  for (uint32_t r = 0; r < n_rows; ++r) {
    float* acc = state.acc.data() + size_t{r} * acc_stride(layer);
    float* tier_acc = apart ? state.tier_acc.data() + size_t{r} * acc_stride(layer) : acc;
    float* zeros = state.zeros.data() + size_t{r} * zeros_stride(layer);
    for (uint32_t g = 0; g < n_groups_v(layer); ++g) {
      const float zero = std::accumulate(zeros + g * kLanes, zeros + (g + 1) * kLanes, 0.0f);
      for (uint32_t c = first + g * group; c < first + (g + 1) * group; ++c) tier_acc[c] += zero;
    }
    if (!apart) continue;
    float *sum = state.sum.data() + size_t{r} * kLanes, *tier_sum = state.tier_sum.data() + size_t{r} * kLanes;
    state.tier_axes->sum_from_tier({tier_acc, dim}, std::accumulate(tier_sum, tier_sum + kLanes, 0.0f));
    for (uint32_t c = 0; c < dim; ++c) acc[c] += tier_acc[c];
    for (uint32_t lane = 0; lane < kLanes; ++lane) sum[lane] += tier_sum[lane];
  }
  std::fill(state.tier_acc.begin(), state.tier_acc.end(), 0.0f);
  std::fill(state.tier_sum.begin(), state.tier_sum.end(), 0.0f);
  std::fill(state.zeros.begin(), state.zeros.end(), 0.0f);
  state.tier_axes = nullptr;
}

void merge(RowState& into, const RowState& from, uint32_t n_rows) {
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float max = std::max(into.max[r], from.max[r]);
    if (max == kHidden) continue;
    const float keep = std::exp(into.max[r] - max), add = std::exp(from.max[r] - max);
    into.max[r] = max;
    merge_part(into.sum, from.sum, n_rows, r, keep, add);
    merge_part(into.acc, from.acc, n_rows, r, keep, add);
    merge_part(into.tier_sum, from.tier_sum, n_rows, r, keep, add);
    merge_part(into.tier_acc, from.tier_acc, n_rows, r, keep, add);
    merge_part(into.zeros, from.zeros, n_rows, r, keep, add);
  }
}

void finish(const QueryTile& tile, RowState& state, std::vector<float>& inverse_sum) {
  const LayerCache::Impl& layer = tile.layer;
  const uint32_t dim = layer.shape.head_dim_v;
  fold_tiers(state, layer, tile.n_rows());
  inverse_sum.resize(tile.n_rows());
  for (uint32_t r = 0; r < tile.n_rows(); ++r) {
    const float* sums = state.sum.data() + size_t{r} * kLanes;
    float denominator = std::accumulate(sums, sums + kLanes, 0.0f);
    if (tile.args.sinks) denominator += std::exp(tile.args.sinks[tile.head_of(r)] - state.max[r]);
    // A row that saw no cell has max -inf and sum 0: its output is 0, with or without a sink.
    inverse_sum[r] = state.max[r] == kHidden ? 0.0f : 1.0f / denominator;
    const float* acc = state.acc.data() + size_t{r} * acc_stride(layer);
    float* out = tile.output(r);
    for (uint32_t c = 0; c < dim; ++c) out[c] = acc[c] * inverse_sum[r];
  }
}

}  // namespace mikv::attention
