#include "codec/transform.hpp"

#include <algorithm>
#include <cmath>

#include "codec/fp16.hpp"
#include "codec/hadamard.hpp"

namespace mikv::codec {

void Transform::key_to_tier(std::span<float> k) const {
  for (size_t c = 0; c < centre.size(); ++c) k[c] -= f16_to_f32(centre[c]);
  for (size_t c = 0; c < balancer.size(); ++c) k[c] *= f16_to_f32(balancer[c]);
  if (hadamard) codec::hadamard(k.data(), uint32_t(k.size()));
  for (float& x : k) x = finite_f16_range(x);
}

void Transform::key_from_tier(std::span<float> k) const {
  if (hadamard) codec::hadamard(k.data(), uint32_t(k.size()));
  for (size_t c = 0; c < balancer.size(); ++c) k[c] /= f16_to_f32(balancer[c]);
  for (size_t c = 0; c < centre.size(); ++c) k[c] += f16_to_f32(centre[c]);
}

void Transform::value_to_tier(std::span<float> v) const {
  if (hadamard) codec::hadamard(v.data(), uint32_t(v.size()));
}

uint16_t balance(float q_max, float k_max) {
  if (!(q_max > 0.0f) || !(k_max > 0.0f) || !std::isfinite(q_max) || !std::isfinite(k_max)) return f32_to_f16(1.0f);
  // Within 2^+-12 a product with a key of ordinary size stays within the range of a half.
  return f32_to_f16(std::clamp(std::sqrt(q_max / k_max), 0x1p-12f, 0x1p12f));
}

}  // namespace mikv::codec
