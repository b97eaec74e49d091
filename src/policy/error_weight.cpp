#include "policy/error_weight.hpp"

#include <cmath>

#include "codec/cpu_clones.hpp"

namespace mikv::policy {
namespace {

// logits[r] = sum over c of k[c] columns[c][r].
MIKV_FOR_EACH_CPU
void dot_columns(const float* k, uint32_t dim, const float* columns, size_t n_rows, float* logits) {
  for (size_t r = 0; r < n_rows; ++r) logits[r] = 0.0f;
  for (uint32_t c = 0; c < dim; ++c, columns += n_rows) {
    const float x = k[c];
    for (size_t r = 0; r < n_rows; ++r) logits[r] += x * columns[r];
  }
}

// to = to * factor + x * weight
MIKV_FOR_EACH_CPU
void add_scaled(float* to, float factor, const float* x, float weight, size_t n) {
  for (size_t c = 0; c < n; ++c) to[c] = to[c] * factor + x[c] * weight;
}

}  // namespace

ErrorWeight::ErrorWeight(std::vector<float> queries, std::vector<uint32_t> arrivals, std::span<const double> v_mean,
                         uint32_t dim_k, uint32_t n_recent)
    : n_rows_(arrivals.size()),
      dim_k_(dim_k),
      n_recent_(n_recent),
      columns_(queries.size()),
      arrivals_(std::move(arrivals)),
      v_mean_(v_mean.begin(), v_mean.end()),
      logits_(n_rows_),
      max_(n_rows_, -INFINITY),
      sum_(n_rows_),
      squares_(n_rows_),
      output_(n_rows_ * v_mean.size()) {
  for (size_t r = 0; r < n_rows_; ++r) {
    for (uint32_t c = 0; c < dim_k; ++c) columns_[c * n_rows_ + r] = queries[r * dim_k + c];
  }
}

void ErrorWeight::add(const float* k, const float* v, uint32_t arrival, bool lo) {
  const size_t dim_v = v_mean_.size();
  float distance = 0.0f;
  for (size_t c = 0; lo && c < dim_v; ++c) distance += (v[c] - v_mean_[c]) * (v[c] - v_mean_[c]);
  dot_columns(k, dim_k_, columns_.data(), n_rows_, logits_.data());
  for (size_t r = 0; r < n_rows_; ++r) {
    if (arrival >= arrivals_[r]) continue;
    float factor = 1.0f;
    if (logits_[r] > max_[r]) {
      factor = std::exp(max_[r] - logits_[r]);
      max_[r] = logits_[r];
    }
    const float weight = std::exp(logits_[r] - max_[r]);
    sum_[r] = sum_[r] * factor + weight;
    const bool recent = arrivals_[r] - arrival <= n_recent_;
    squares_[r] = squares_[r] * factor * factor + (recent ? 0.0f : weight * weight * distance);
    add_scaled(&output_[r * dim_v], factor, v, weight, dim_v);
  }
}

ErrorWeight::Sums ErrorWeight::sums() const {
  Sums sums;
  for (size_t r = 0; r < n_rows_; ++r) {
    if (sum_[r] == 0.0f) continue;
    const double square = double(sum_[r]) * sum_[r];
    sums.error += squares_[r] / square;
    for (size_t c = 0; c < v_mean_.size(); ++c) sums.output += std::pow(output_[r * v_mean_.size() + c], 2) / square;
  }
  return sums;
}

}  // namespace mikv::policy
