#include "policy/rope_forecast.hpp"

#include <cmath>
#include <complex>

#include "codec/cpu_clones.hpp"

namespace mikv::policy {
namespace {

// Mean of e^{i x} over x from 0 to `end`.
std::complex<double> mean_turn(double end) {
  if (std::abs(end) < 1e-6) return 1.0;
  return (std::polar(1.0, end) - 1.0) / std::complex<double>(0.0, end);
}

// So many positions are turned by a product each before the sine is computed anew: an error of 1e-14 is left.
constexpr uint32_t kSteps = 64;

MIKV_FOR_EACH_CPU
void turn_further(const double* step_re, const double* step_im, size_t n, double* __restrict turn_re,
                  double* __restrict turn_im) {
  for (size_t i = 0; i < n; ++i) {
    const double re = turn_re[i] * step_re[i] - turn_im[i] * step_im[i];
    turn_im[i] = turn_re[i] * step_im[i] + turn_im[i] * step_re[i];
    turn_re[i] = re;
  }
}

struct SumsOfPairs {
  double *z_re, *z_im, *square_re, *square_im, *norm;
};

// z = (a + i b) turn.
MIKV_FOR_EACH_CPU
void add_unturned(const float* a, const float* b, const double* turn_re, const double* turn_im, size_t n,
                  const SumsOfPairs& sums) {
  double* __restrict z_re = sums.z_re, * __restrict z_im = sums.z_im, * __restrict norm = sums.norm;
  double* __restrict square_re = sums.square_re, * __restrict square_im = sums.square_im;
  for (size_t i = 0; i < n; ++i) {
    const double re = a[i] * turn_re[i] - b[i] * turn_im[i], im = a[i] * turn_im[i] + b[i] * turn_re[i];
    z_re[i] += re, z_im[i] += im;
    square_re[i] += re * re - im * im, square_im[i] += 2.0 * re * im;
    norm[i] += re * re + im * im;
  }
}

}  // namespace

RopeForecast::RopeForecast(const Rope& rope) : rope_(rope) {
  const size_t n = rope.angles.size();
  for (auto* of_pairs : {&pairs_.turn_re, &pairs_.turn_im, &pairs_.step_re, &pairs_.step_im, &pairs_.z_re, &pairs_.z_im,
                         &pairs_.square_re, &pairs_.square_im, &pairs_.norm}) {
    of_pairs->resize(n);
  }
  pairs_.a.resize(n);
  pairs_.b.resize(n);
  for (size_t i = 0; i < n; ++i) {
    pairs_.step_re[i] = std::cos(double(rope.angles[i]));
    pairs_.step_im[i] = -std::sin(double(rope.angles[i]));
  }
}

void RopeForecast::turn_to(uint32_t position) {
  const size_t n = rope_.angles.size();
  if (n_ && position == last_ + 1 && position % kSteps) {
    turn_further(pairs_.step_re.data(), pairs_.step_im.data(), n, pairs_.turn_re.data(), pairs_.turn_im.data());
  } else if (!n_ || position != last_) {
    for (size_t i = 0; i < n; ++i) {
      const double turn = double(rope_.angles[i]) * position;
      pairs_.turn_re[i] = std::cos(turn), pairs_.turn_im[i] = -std::sin(turn);
    }
  }
  last_ = position;
}

void RopeForecast::add(const float* key, uint32_t position) {
  turn_to(position);
  ++n_;
  const size_t n = rope_.angles.size();
  for (uint32_t i = 0; i < n; ++i) {
    const auto [a, b] = rope_.channels(i);
    pairs_.a[i] = key[a], pairs_.b[i] = key[b];
  }
  add_unturned(
      pairs_.a.data(), pairs_.b.data(), pairs_.turn_re.data(), pairs_.turn_im.data(), n,
      {pairs_.z_re.data(), pairs_.z_im.data(), pairs_.square_re.data(), pairs_.square_im.data(), pairs_.norm.data()});
}

void RopeForecast::apply(double horizon, Moments& moments) const {
  if (n_ == 0) return;
  const double n = double(n_);
  for (uint32_t i = 0; i < rope_.angles.size(); ++i) {
    const auto [a, b] = rope_.channels(i);
    const double turn = double(rope_.angles[i]) * horizon;
    const std::complex<double> z(pairs_.z_re[i], pairs_.z_im[i]), square(pairs_.square_re[i], pairs_.square_im[i]);
    const std::complex<double> mean = z / n * mean_turn(turn), twice = mean_turn(2.0 * turn);
    const double both = pairs_.norm[i] / n, difference = (square / n * twice).real();
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
