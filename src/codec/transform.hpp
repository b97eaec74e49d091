// Transform: the coordinates in which a frame's tiers hold keys and values, chosen so that few bits go far.
//
//   key     k' = H ((k - mu) * b)     mu: centre, b: channel balancer (Eq. 2 of MiKV), H: Hadamard rotation
//   query   q' = H (q / b)            so that q'.k' = q.k - q.mu; the constant q.mu is added back (bias)
//   value   v' = H v                  so that the output is H (sum w v')
// Queries are transformed where kernels prepare them (attention/prepare-inl.hpp). Each of the three is optional; mu and b are stored as halves, and the same halves are used in both directions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mikv::codec {

struct Transform {
  std::vector<uint16_t> centre;    ///< [dim_k] halves, or empty
  std::vector<uint16_t> balancer;  ///< [dim_k] halves, or empty
  bool hadamard = false;

  void key_to_tier(std::span<float> k) const;
  void key_from_tier(std::span<float> k) const;
  void value_to_tier(std::span<float> v) const;
  void value_from_tier(std::span<float> v) const { value_to_tier(v); }  // H is its own inverse

  uint64_t bytes() const { return sizeof(uint16_t) * (centre.size() + balancer.size()); }
};

/// Eq. 2: b_c = sqrt(max|q_c| / max|k_c|) as a half; 1 where either maximum is 0, so that nothing is scaled away.
uint16_t balance(float q_max, float k_max);

}  // namespace mikv::codec
