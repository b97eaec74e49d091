#include "tier/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "codec/cpu_clones.hpp"
#include "codec/fp16.hpp"
#include "policy/outlier_channels.hpp"
#include "policy/rope_forecast.hpp"
#include "tier/head_store.hpp"
#include "tier/staged_rows.hpp"

namespace mikv::tier {
namespace {

// How many tokens a context is taken to get, when its coordinates are frozen on n_tokens. Each doubling takes from the
// centre of slow pairs what it is worth, and so bits that a head of few bits does not have
// (docs/adr/0013-rope-forecast.md); a prompt that is compressed as it is read continues, to the end of the segment
// (docs/adr/0014-segments-of-a-long-prompt.md).
double tokens_to_expect(uint32_t n_tokens, double bits, Prefill prefill) {
  if (prefill == Prefill::streaming) return std::max(n_tokens, kSegmentTokens);
  return n_tokens * std::clamp(std::pow(4.0, bits - 1.7), 1.0, 8.0);
}

MIKV_FOR_EACH_CPU
void add_moments(const float* x, size_t n, double* __restrict mean, double* __restrict square) {
  for (size_t c = 0; c < n; ++c) mean[c] += x[c], square[c] += double(x[c]) * x[c];
}

Calibration plan_mixed(const HeadStore& head, const Spec& spec, CommitScratch& scratch) {
  const double bits = spec.bits + head.more_bits;
  const Positions& positions = head.positions();
  policy::Moments moments = staged_moments(head, scratch);
  if (!positions.rope.angles.empty() && !head.rope_shifted) {
    policy::RopeForecast forecast(positions.rope);
    for_each_staged(head, scratch, [&](uint32_t slot, const float* k, const float*) {
      forecast.add(k, head.staged.layout().scored ? head.staged.arrival(slot) : slot);
    });
    forecast.apply(std::min<double>(positions.max_cells, tokens_to_expect(head.staged.size(), bits, spec.prefill)),
                   moments);
  }
  policy::MixedCalibration mixed = policy::plan_mixed_calibration(moments, bits, head.lo.layout().id_bytes);
  return {std::move(mixed.transform), std::make_unique<codec::BlockLayout>(mixed.lo)};
}

Calibration plan_uniform(const HeadStore& head, const Spec& spec, CommitScratch& scratch) {
  const uint32_t dim = head.staged.layout().dim_k;
  std::vector<double> sum(dim);
  std::vector<float> low(dim, INFINITY), high(dim, -INFINITY), largest_v(head.staged.layout().dim_v);
  for_each_staged(head, scratch, [&](uint32_t, const float* k, const float* v) {
    for (uint32_t c = 0; c < dim; ++c) {
      sum[c] += k[c];
      low[c] = std::min(low[c], k[c]), high[c] = std::max(high[c], k[c]);
    }
    for (size_t c = 0; c < largest_v.size(); ++c) largest_v[c] = std::max(largest_v[c], std::abs(v[c]));
  });
  Calibration calibration{head.transform, nullptr};
  codec::Axes& key = calibration.transform.key;
  for (uint32_t c = 0; c < dim; ++c) {
    if (spec.center) key.centre.push_back(codec::f32_to_f16(float(sum[c] / head.staged.size())));
    const float mu = spec.center ? codec::f16_to_f32(key.centre[c]) : 0.0f;
    if (spec.balancer)
      key.balancer.push_back(
          codec::balance(head.queries.empty() ? 0.0f : head.queries.largest[c], std::max(high[c] - mu, mu - low[c])));
  }
  if (spec.outlier_channels) {
    std::vector<float> largest_k(dim);
    for (uint32_t c = 0; c < dim; ++c) {
      const float factor = key.balancer.empty() ? 1.0f : codec::f16_to_f32(key.balancer[c]);
      largest_k[c] = factor * std::max(high[c], -low[c]);
    }
    key.order = policy::outliers_first(largest_k, codec::kTileSide);
    calibration.transform.value.order = policy::outliers_first(largest_v, codec::kTileSide);
  }
  return calibration;
}

}  // namespace

policy::Moments staged_moments(const HeadStore& head, CommitScratch& scratch) {
  const uint32_t dim_k = head.staged.layout().dim_k, dim_v = head.staged.layout().dim_v;
  policy::Moments moments{std::vector<double>(dim_k), std::vector<double>(dim_k), std::vector<double>(dim_v),
                          std::vector<double>(dim_v), head.queries.mean_square()};
  for_each_staged(head, scratch, [&](uint32_t, const float* k, const float* v) {
    add_moments(k, dim_k, moments.k_mean.data(), moments.k_square.data());
    add_moments(v, dim_v, moments.v_mean.data(), moments.v_square.data());
  });
  for (auto* sums : {&moments.k_mean, &moments.k_square, &moments.v_mean, &moments.v_square}) {
    for (double& sum : *sums) sum /= double(head.staged.size());
  }
  return moments;
}

Calibration plan_calibration(const HeadStore& head, const Spec& spec, CommitScratch& scratch) {
  return spec.mixed() ? plan_mixed(head, spec, scratch) : plan_uniform(head, spec, scratch);
}

}  // namespace mikv::tier
