#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mikv::cli {

double mean(std::span<const double> values) {
  return values.empty() ? 0.0 : std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

double quantile(std::span<const double> values, double q) {
  if (values.empty()) return 0.0;
  std::vector<double> sorted(values.begin(), values.end());
  std::ranges::sort(sorted);
  const double position = q * double(sorted.size() - 1);
  const size_t below = size_t(position);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - double(below)) * (sorted[above] - sorted[below]);
}

std::vector<double> log_softmax(std::span<const float> logits) {
  const double max = logits.empty() ? 0.0 : double(*std::ranges::max_element(logits));
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(double(logit) - max);
  const double log_sum = max + std::log(sum);
  std::vector<double> result(logits.size());
  std::ranges::transform(logits, result.begin(), [&](float logit) { return double(logit) - log_sum; });
  return result;
}

double kl_divergence(std::span<const double> log_p, std::span<const double> log_q) {
  double sum = 0.0;
  for (size_t i = 0; i < log_p.size(); ++i) {
    const double p = std::exp(log_p[i]);
    if (p > 0.0) sum += p * (log_p[i] - log_q[i]);
  }
  return sum;
}

}  // namespace mikv::cli
