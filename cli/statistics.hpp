// Summaries of samples.
#pragma once

#include <span>
#include <vector>

namespace mikv::cli {

double mean(std::span<const double> values);  ///< 0 of none

/// The q-quantile, 0 <= q <= 1, interpolated linearly between order statistics (R's type 7, numpy's default); 0 of
/// none.
double quantile(std::span<const double> values, double q);

inline double median(std::span<const double> values) { return quantile(values, 0.5); }

/// log(softmax(logits)), in double precision.
std::vector<double> log_softmax(std::span<const float> logits);

/// Kullback-Leibler divergence sum p (log p - log q) of two distributions given as logarithms; p = 0 terms add nothing.
double kl_divergence(std::span<const double> log_p, std::span<const double> log_q);

}  // namespace mikv::cli
