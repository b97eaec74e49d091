#include "codec/transform.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "codec/block.hpp"
#include "codec/fp16.hpp"
#include "codec/hadamard.hpp"

namespace mikv::codec {

void Axes::rotate(std::span<float> x) const {
  size_t first = 0;
  for (const uint16_t length : turns) {
    codec::hadamard(x.data() + first, length);
    first += length;
  }
  if (hadamard) codec::hadamard(x.data(), uint32_t(x.size()));
}

void Axes::arrange(std::span<float> x) const {
  if (!order.empty()) {
    std::array<float, kMaxHeadDim> before;
    std::copy(x.begin(), x.end(), before.begin());
    for (size_t i = 0; i < order.size(); ++i) x[i] = before[order[i]];
  }
  rotate(x);
}

void Axes::to_tier(std::span<float> x) const {
  for (size_t c = 0; c < centre.size(); ++c) x[c] -= f16_to_f32(centre[c]);
  for (size_t c = 0; c < balancer.size(); ++c) x[c] *= f16_to_f32(balancer[c]);
  arrange(x);
  for (float& value : x) value = finite_f16_range(value);
}

void Axes::sum_from_tier(std::span<float> x, float weight) const {
  rotate(x);  // its own inverse
  if (!order.empty()) {
    std::array<float, kMaxHeadDim> before;
    std::copy(x.begin(), x.end(), before.begin());
    for (size_t i = 0; i < order.size(); ++i) x[order[i]] = before[i];
  }
  for (size_t c = 0; c < balancer.size(); ++c) x[c] /= f16_to_f32(balancer[c]);
  for (size_t c = 0; c < centre.size(); ++c) x[c] += weight * f16_to_f32(centre[c]);
}

uint16_t balance(float q_max, float k_max) {
  if (!(q_max > 0.0f) || !(k_max > 0.0f) || !std::isfinite(q_max) || !std::isfinite(k_max)) return f32_to_f16(1.0f);
  return balancer_half(std::sqrt(q_max / k_max));
}

// Within 2^+-12 a product with a key of ordinary size stays within the range of a half.
uint16_t balancer_half(float factor) { return f32_to_f16(std::clamp(factor, 0x1p-12f, 0x1p12f)); }

}  // namespace mikv::codec
