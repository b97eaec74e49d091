#include "policy/mixed_calibration.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "codec/fp16.hpp"
#include "policy/bit_allocation.hpp"

namespace mikv::policy {
namespace {

using codec::kTileSide;

// Root mean squares of K or V about `centre`, and of what they are multiplied by.
struct Channels {
  std::vector<double> x, factor;
};

std::vector<uint16_t> halves(const std::vector<double>& values) {
  std::vector<uint16_t> result;
  for (const double value : values) result.push_back(codec::f32_to_f16(codec::finite_f16_range(float(value))));
  return result;
}

// Square roots, none below 1e-4 of the largest: a channel that hardly moves must not be blown up without bound.
std::vector<double> roots(const std::vector<double>& squares) {
  const double largest = *std::max_element(squares.begin(), squares.end());
  std::vector<double> result;
  for (const double square : squares)
    result.push_back(largest > 0.0 ? std::sqrt(std::max(square, 1e-8 * largest)) : 1.0);
  return result;
}

std::vector<double> variances(const std::vector<double>& mean, const std::vector<double>& square,
                              const std::vector<uint16_t>& centre) {
  std::vector<double> result;
  for (size_t c = 0; c < mean.size(); ++c) {
    const double mu = codec::f16_to_f32(centre[c]);
    result.push_back(std::max(0.0, square[c] - 2.0 * mu * mean[c] + mu * mu));
  }
  return result;
}

double importance(const Channels& channels, uint16_t c) { return channels.x[c] * channels.factor[c]; }

std::vector<uint16_t> by_importance(const Channels& channels) {
  std::vector<uint16_t> order(channels.x.size());
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](uint16_t a, uint16_t b) { return importance(channels, a) > importance(channels, b); });
  return order;
}

double mean_importance(const Channels& channels, const std::vector<uint16_t>& order, size_t begin, size_t end) {
  double sum = 0.0;
  for (size_t i = begin; i < end; ++i) sum += importance(channels, order[i]);
  return sum / double(end - begin);
}

// Error that losing each tile would make: its n channels of variance s in b k meet q / b of the same variance.
std::vector<double> harms(const Channels& channels, const std::vector<uint16_t>& order) {
  std::vector<double> result;
  for (size_t begin = 0; begin < order.size(); begin += kTileSide) {
    const size_t end = std::min(begin + kTileSide, order.size());
    const double variance = mean_importance(channels, order, begin, end);
    result.push_back(double(end - begin) * variance * variance);
  }
  return result;
}

// Turns: runs of tiles of equal bits, in pieces of a power of two; the balancer brings each to variance 1. Returns how
// much an error in a coordinate counts, for each tile: its variance before that, of k in a coordinate and of q,
// relative to the largest.
std::vector<float> fill_axes(const Channels& channels, const std::vector<uint8_t>& bits, codec::Axes& axes) {
  std::vector<float> weights(bits.size());
  double largest = 0.0;
  const size_t dim = axes.order.size();
  axes.balancer.resize(dim);
  for (size_t begin = 0; begin < dim;) {
    size_t run_end = begin;
    while (run_end < dim && bits[run_end / kTileSide] == bits[begin / kTileSide]) ++run_end;
    const size_t length = std::bit_floor(run_end - begin);
    const double variance = mean_importance(channels, axes.order, begin, begin + length);
    largest = std::max(largest, variance);
    for (size_t tile = begin / kTileSide; tile * kTileSide < begin + length; ++tile) {
      weights[tile] = float(std::pow(variance / largest, 2));
    }
    for (size_t i = begin; i < begin + length; ++i) {
      const uint16_t c = axes.order[i];
      axes.balancer[c] = codec::balancer_half(float(std::sqrt(channels.factor[c] / (channels.x[c] * variance))));
    }
    axes.turns.push_back(uint16_t(length));
    begin += length;
  }
  return weights;
}

// Ids and scales of a block.
double fixed_bytes(uint32_t id_bytes) { return codec::kBlockTokens * (id_bytes + 2.0); }

// Harms of losing each tile, up to a factor: the largest gain that one more bit would bring is 1, as it was for K and V
// alike when their bits were given out.
std::vector<double> relative_harms(const codec::TileTable& row, uint32_t n_tiles) {
  std::vector<double> harm(row.weight.begin(), row.weight.begin() + n_tiles);
  double gain = 0.0;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    if (row.bits[t] < kMaxTileBits) gain = std::max(gain, harm[t] * std::pow(4.0, -double(row.bits[t])));
  }
  if (gain == 0.0) gain = harm.back() * std::pow(4.0, -double(kMaxTileBits));  // all have the most there is
  for (double& h : harm) h /= gain;
  return harm;
}

}  // namespace

double total_tile_bits(size_t n_channels, double bits, uint32_t id_bytes) {
  const double bytes = bits * double(n_channels * codec::kBlockTokens) / 8.0 - fixed_bytes(id_bytes);
  return std::max(0.0, bytes / double(codec::tile_bytes(1)) + 1e-9);
}

double bits_of_total(size_t n_channels, uint32_t total, uint32_t id_bytes) {
  return 8.0 * (fixed_bytes(id_bytes) + double(total * codec::tile_bytes(1))) /
         double(n_channels * codec::kBlockTokens);
}

double least_bits(uint32_t dim_k, uint32_t dim_v, uint32_t id_bytes) {
  const uint32_t total = kMinTileBits * (codec::tiles_of(dim_k) + codec::tiles_of(dim_v));
  return bits_of_total(dim_k + dim_v, total, id_bytes);
}

codec::BlockLayout lower_bits(const codec::BlockLayout& lo, double bits) {
  const TileBits lower = allocate_bits(relative_harms(lo.row_k, lo.tiles_k), relative_harms(lo.row_v, lo.tiles_v),
                                       uint32_t(total_tile_bits(lo.dim_k + lo.dim_v, bits, lo.id_bytes)));
  return codec::BlockLayout::make_mixed(lo.dim_k, lo.dim_v, {lower.k, std::span(lo.row_k.weight).first(lo.tiles_k)},
                                        {lower.v, std::span(lo.row_v.weight).first(lo.tiles_v)}, lo.id_bytes);
}

MixedCalibration plan_mixed_calibration(const Moments& moments, double bits, uint32_t id_bytes) {
  MixedCalibration segment;
  codec::Axes &key = segment.transform.key, &value = segment.transform.value;
  key.centre = halves(moments.k_mean);
  value.centre = halves(moments.v_mean);
  const std::vector<double> v_variances = variances(moments.v_mean, moments.v_square, value.centre);
  const Channels keys{
      roots(variances(moments.k_mean, moments.k_square, key.centre)),
      moments.q_square.empty() ? std::vector<double>(moments.k_mean.size(), 1.0) : roots(moments.q_square)};
  const Channels values{roots(v_variances), std::vector<double>(v_variances.size(), 1.0)};
  key.order = by_importance(keys);
  value.order = by_importance(values);

  std::vector<double> harm_v = harms(values, value.order);
  const double all_values = std::accumulate(harm_v.begin(), harm_v.end(), 0.0);
  for (double& harm : harm_v) harm *= kValueHarm / all_values;
  const std::vector<double> harm_k = harms(keys, key.order);
  const TileBits tile_bits =
      allocate_bits(harm_k, harm_v, uint32_t(total_tile_bits(key.order.size() + value.order.size(), bits, id_bytes)));
  const std::vector<float> weights_k = fill_axes(keys, tile_bits.k, key);
  const std::vector<float> weights_v = fill_axes(values, tile_bits.v, value);
  segment.lo = codec::BlockLayout::make_mixed(uint32_t(key.order.size()), uint32_t(value.order.size()),
                                              {tile_bits.k, weights_k}, {tile_bits.v, weights_v}, id_bytes);
  return segment;
}

}  // namespace mikv::policy
