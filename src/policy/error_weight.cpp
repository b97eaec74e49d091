#include "policy/error_weight.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec/cpu_clones.hpp"

namespace mikv::policy {
namespace {

constexpr float kNothing = -1e30f;  // less than any logit
constexpr float kLeast = 0x1p-26f;  // a weight below this part of the sum changes no float of the output

// 16 rows, with the operators that the compiler gives them on any CPU.
typedef float Rows16 __attribute__((vector_size(64)));

// dot_columns() of 16 kVectors rows from `first` on, whose sums stay in registers.
template <size_t kVectors>
__attribute__((always_inline)) inline void dot_rows(const float* k, uint32_t dim, const float* columns, size_t n_rows,
                                                    size_t first, float* logits) {
  Rows16 sums[kVectors] = {};
  for (uint32_t c = 0; c < dim; ++c) {
    Rows16 rows[kVectors];
    std::memcpy(rows, columns + c * n_rows + first, sizeof rows);
    for (size_t i = 0; i < kVectors; ++i) sums[i] += k[c] * rows[i];
  }
  std::memcpy(logits + first, sums, sizeof sums);
}

// logits[r] = sum over c of k[c] columns[c][r].
MIKV_FOR_EACH_CPU
void dot_columns(const float* k, uint32_t dim, const float* columns, size_t n_rows, float* logits) {
  size_t first = 0;
  for (; first + 64 <= n_rows; first += 64) dot_rows<4>(k, dim, columns, n_rows, first, logits);
  if (first + 32 <= n_rows) dot_rows<2>(k, dim, columns, n_rows, first, logits), first += 32;
  if (first + 16 <= n_rows) dot_rows<1>(k, dim, columns, n_rows, first, logits), first += 16;
  for (; first < n_rows; ++first) {
    logits[first] = 0.0f;
    for (uint32_t c = 0; c < dim; ++c) logits[first] += k[c] * columns[c * n_rows + first];
  }
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

// e^x for x <= 0, to 3e-7 of it, never below 2^-126; 1 for 0. A loop over it is vectorised, one over std::exp is not.
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

struct Token {
  uint32_t arrival, n_recent;
  float distance;
};

// A token's weight under each row's softmax, and the factor that its maximum changes what was summed before by.
MIKV_FOR_EACH_CPU
void add_token(Token token, size_t n_rows, const uint32_t* __restrict arrivals, const float* __restrict logits,
               float* __restrict max, float* __restrict sum, float* __restrict squares, float* __restrict factors,
               float* __restrict weights) {
  for (size_t r = 0; r < n_rows; ++r) {
    const bool seen = token.arrival < arrivals[r], recent = arrivals[r] - token.arrival <= token.n_recent;
    const float given = logits[r];  // read anyway: loops with conditional loads are not vectorised
    const float logit = seen ? given : kNothing;
    const float most = logit > max[r] ? logit : max[r];
    const float factor = exp_of(max[r] - most), of_logit = exp_of(logit - most);
    const float weight = seen ? of_logit : 0.0f, square = weight * weight * token.distance;
    max[r] = most;
    sum[r] = sum[r] * factor + weight;
    squares[r] = squares[r] * factor * factor + (recent ? 0.0f : square);
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
  add_token({arrival, n_recent_, distance}, n_rows_, arrivals_.data(), logits_.data(), max_.data(), sum_.data(),
            squares_.data(), factors_.data(), weights_.data());
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
