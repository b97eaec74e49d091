// Error weight: how much an error of the lo tier's codes changes the output of attention, by the queries at a prompt's
// end.
//
// For an output o = sum p_i v_i, errors of variance s in the logits cause an error of variance s sum p_i^2 |v_i - o|^2;
// errors of the values cause sum p_i^2 E|dv_i|^2. Both grow with sum p_i^2 over the lo tier: errors cancel in an
// average over many tokens, not in what is looked up in one token. Heads differ by factors of 1000.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mikv::policy {

class ErrorWeight {
 public:
  /// Query rows, [n_rows][dim_k], times the softmax scale; row r sees tokens that arrived before arrivals[r].
  /// v_mean[dim_v]: of the head's values; stands for the output in distances.
  /// n_recent: of the tokens before a query, the number that the hi tier keeps whatever their scores.
  ErrorWeight(std::vector<float> queries, std::vector<uint32_t> arrivals, std::span<const double> v_mean,
              uint32_t dim_k, uint32_t n_recent);

  /// Adds the next token: k[dim_k], v[dim_v]. lo: it will be stored in the lo tier.
  void add(const float* k, const float* v, uint32_t arrival, bool lo);

  /// Sums over the rows: of p_i^2 |v_i - v_mean|^2 over the lo tier, and of |o|^2.
  struct Sums {
    double error = 0.0, output = 0.0;
  };
  Sums sums() const;

 private:
  size_t n_rows_;
  uint32_t dim_k_, n_recent_;
  std::vector<float> columns_;  // queries by channel, [dim_k][n_rows]
  std::vector<uint32_t> arrivals_;
  std::vector<float> v_mean_;
  std::vector<float> logits_, max_, sum_, squares_;  // softmax state, by row
  std::vector<float> factors_, weights_;             // of the last token
  std::vector<float> output_;                        // [n_rows][dim_v]
};

}  // namespace mikv::policy
