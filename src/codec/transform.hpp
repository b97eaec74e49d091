// Transform: the coordinates in which a segment's tiers hold keys and values, chosen so that few bits go far.
//
//   key     k' = H P ((k - mu) * b)   mu: centre, b: channel balancer (Eq. 2 of MiKV), P: channels in another order,
//                                     H: Hadamard rotation of the head, or of each of its turns
//   query   q' = H P (q / b)          so that q'.k' = q.k - q.mu; the constant q.mu is added back (bias)
//   value   v' = H P ((v - nu) * c)   weights sum to 1, so that the output is P^T H (sum w v') / c + nu
//
// Queries are transformed where kernels prepare them (attention/prepare-inl.hpp). Each part is optional; what
// multiplies or is subtracted is stored as halves, and the same halves are used in both directions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mikv::codec {

/// The coordinates of keys or of values.
struct Axes {
  std::vector<uint16_t> centre;    ///< [dim] halves, or empty
  std::vector<uint16_t> balancer;  ///< [dim] halves, or empty
  std::vector<uint16_t> order;     ///< [dim]: the channel that stands in each place; empty: each in its own
  std::vector<uint16_t>
      turns;  ///< lengths, powers of two that sum to dim, of the runs rotated each by itself; empty: see hadamard
  bool hadamard = false;  ///< the whole head is rotated

  void to_tier(std::span<float> x) const;
  /// The part of to_tier() that queries share: the order and the rotation.
  void arrange(std::span<float> x) const;
  void from_tier(std::span<float> x) const { sum_from_tier(x, 1.0f); }
  /// For a weighted sum of vectors whose weights sum to `weight`.
  void sum_from_tier(std::span<float> x, float weight) const;
  uint64_t bytes() const { return sizeof(uint16_t) * (centre.size() + balancer.size() + order.size() + turns.size()); }

 private:
  void rotate(std::span<float> x) const;
};

struct Transform {
  Axes key, value;
  uint64_t bytes() const { return key.bytes() + value.bytes(); }
  /// The most that bytes() can be: a centre, a balancer, an order, and turns of 8 channels.
  static uint64_t most_bytes(uint32_t dim_k, uint32_t dim_v) { return 7 * (uint64_t{dim_k} + dim_v); }
};

/// Balancers of a layer that were measured beforehand: [n_kv_heads][head_dim_k] halves; or empty.
using KeyBalancers = std::vector<std::vector<uint16_t>>;

/// Eq. 2: b_c = sqrt(max|q_c| / max|k_c|) as a half; 1 where either maximum is 0, so that nothing is scaled away.
uint16_t balance(float q_max, float k_max);
/// A factor of a balancer as a half.
uint16_t balancer_half(float factor);

}  // namespace mikv::codec
