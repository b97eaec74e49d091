#include "policy/error_weight.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "codec/cpu_clones.hpp"

namespace mikv::policy {
namespace {

constexpr float kNothing = -1e30f;  // less than any logit
constexpr float kLeast = 0x1p-26f;  // a weight below this part of the sum changes no float of the output

// dot_columns() of kRows rows from `first` on, whose sums stay in registers.
template <size_t kRows>
__attribute__((always_inline)) inline void dot_rows(const float* k, uint32_t dim, const float* columns, size_t n_rows,
                                                    size_t first, float* logits) {
  float sums[kRows] = {};
  for (uint32_t c = 0; c < dim; ++c) {
    for (size_t r = 0; r < kRows; ++r) sums[r] += k[c] * columns[c * n_rows + first + r];
  }
  for (size_t r = 0; r < kRows; ++r) logits[first + r] = sums[r];
}

// logits[r] = sum over c of k[c] columns[c][r].
MIKV_FOR_EACH_CPU
void dot_columns(const float* k, uint32_t dim, const float* columns, size_t n_rows, float* logits) {
  size_t first = 0;
  for (; first + 64 <= n_rows; first += 64) dot_rows<64>(k, dim, columns, n_rows, first, logits);
  for (; first + 16 <= n_rows; first += 16) dot_rows<16>(k, dim, columns, n_rows, first, logits);
  for (; first < n_rows; ++first) dot_rows<1>(k, dim, columns, n_rows, first, logits);
}

MIKV_FOR_EACH_CPU
float squared_distance(const float* x, const float* y, size_t n) {
  constexpr size_t kChains = 16;
  float sums[kChains] = {};
  const size_t whole = n / kChains * kChains;
  for (size_t first = 0; first < whole; first += kChains) {
    for (size_t i = 0; i < kChains; ++i) sums[i] += (x[first + i] - y[first + i]) * (x[first + i] - y[first + i]);
  }
  float sum = 0.0f;
  for (const float of_chain : sums) sum += of_chain;
  for (size_t i = whole; i < n; ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return sum;
}

// e^x for x <= 0, to 3e-7 of it, never below 2^-126. A loop over it is vectorised, one over std::exp is not.
__attribute__((always_inline)) inline float exp_of(float x) {
  const float power = std::max(x * 1.44269504f, -126.0f),
              rounded = power + 0x1.8p23f;        // its lowest bits: a whole number
  const float f = power - (rounded - 0x1.8p23f);  // -0.5 to 0.5
  const float y =
      1.0f +
      f * (0.693147181f +
           f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * (0.00133335581f + f * 1.5403530e-4f)))));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(rounded) << 23));
}

// Of rows: see ErrorWeight.
struct Rows {
  const uint32_t* arrivals;
  const float* logits;
  float *max, *sum, *squares, *factors, *weights;
};

// A token's weight under each row's softmax, and the factor that its maximum changes what was summed before by.
MIKV_FOR_EACH_CPU
void add_token(const Rows& rows, size_t n_rows, uint32_t arrival, uint32_t n_recent, float distance) {
  const uint32_t* arrivals = rows.arrivals;
  const float* logits = rows.logits;
  float* __restrict max = rows.max, * __restrict sum = rows.sum, * __restrict squares = rows.squares, * __restrict factors = rows.factors, * __restrict weights = rows.weights;
  for (size_t r = 0; r < n_rows; ++r) {
    const bool seen = arrival < arrivals[r], recent = arrivals[r] - arrival <= n_recent;
    const float logit = seen ? logits[r] : kNothing, most = logit > max[r] ? logit : max[r];
    const float before = max[r] - most, now = logit - most;
    const float factor = before < 0.0f ? exp_of(before) : 1.0f, weight = seen ? exp_of(now) : 0.0f;
    max[r] = most;
    sum[r] = sum[r] * factor + weight;
    squares[r] = squares[r] * factor * factor + (recent ? 0.0f : weight * weight * distance);
    factors[r] = factor;
    weights[r] = weight > kLeast * sum[r] ? weight : 0.0f;
  }
}

// to[r] = to[r] * factors[r] + x * weights[r], rows of n.
MIKV_FOR_EACH_CPU
void add_scaled(float* __restrict to, const float* factors, const float* x, const float* weights, size_t n_rows,
                size_t n) {
  for (size_t r = 0; r < n_rows; ++r, to += n) {
    const float factor = factors[r], weight = weights[r];
    if (weight == 0.0f && factor == 1.0f) continue;
    for (size_t c = 0; c < n; ++c) to[c] = to[c] * factor + x[c] * weight;
  }
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
      max_(n_rows_, kNothing),
      sum_(n_rows_),
      squares_(n_rows_),
      factors_(n_rows_),
      weights_(n_rows_),
      output_(n_rows_ * v_mean.size()) {
  for (size_t r = 0; r < n_rows_; ++r) {
    for (uint32_t c = 0; c < dim_k; ++c) columns_[c * n_rows_ + r] = queries[r * dim_k + c];
  }
}

void ErrorWeight::add(const float* k, const float* v, uint32_t arrival, bool lo) {
  const size_t dim_v = v_mean_.size();
  const float distance = lo ? squared_distance(v, v_mean_.data(), dim_v) : 0.0f;
  dot_columns(k, dim_k_, columns_.data(), n_rows_, logits_.data());
  add_token(
      {arrivals_.data(), logits_.data(), max_.data(), sum_.data(), squares_.data(), factors_.data(), weights_.data()},
      n_rows_, arrival, n_recent_, distance);
  add_scaled(output_.data(), factors_.data(), v, weights_.data(), n_rows_, dim_v);
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
