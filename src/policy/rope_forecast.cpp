#include "policy/rope_forecast.hpp"

#include <cmath>

namespace mikv::policy {
namespace {

// Mean of e^{i x} over x from 0 to `end`.
std::complex<double> mean_turn(double end) {
  if (std::abs(end) < 1e-6) return 1.0;
  return (std::polar(1.0, end) - 1.0) / std::complex<double>(0.0, end);
}

}  // namespace

void RopeForecast::add(const float* key, uint32_t position) {
  ++n_;
  for (uint32_t i = 0; i < sums_.size(); ++i) {
    const auto [a, b] = rope_.channels(i);
    const std::complex<double> z =
        std::complex<double>(key[a], key[b]) * std::polar(1.0, -double(rope_.angles[i]) * position);
    sums_[i].z += z;
    sums_[i].z_square += z * z;
    sums_[i].norm += std::norm(z);
  }
}

void RopeForecast::apply(double horizon, Moments& moments) const {
  if (n_ == 0) return;
  const double n = double(n_);
  for (uint32_t i = 0; i < sums_.size(); ++i) {
    const auto [a, b] = rope_.channels(i);
    const double turn = double(rope_.angles[i]) * horizon;
    const std::complex<double> mean = sums_[i].z / n * mean_turn(turn), twice = mean_turn(2.0 * turn);
    const double both = sums_[i].norm / n, difference = (sums_[i].z_square / n * twice).real();
    moments.k_mean[a] = mean.real();
    moments.k_mean[b] = mean.imag();
    moments.k_square[a] = (both + difference) / 2.0;
    moments.k_square[b] = (both - difference) / 2.0;
    if (moments.q_square.empty()) continue;
    const double even = (moments.q_square[a] + moments.q_square[b]) / 2.0, stays = std::abs(twice);
    for (const uint32_t c : {a, b}) moments.q_square[c] = even + stays * (moments.q_square[c] - even);
  }
}

}  // namespace mikv::policy
