// llama.cpp's own attention by itself: the baseline of mikv's kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mikv/mikv.hpp"

namespace mikv::llama {

struct FlashAttnProblem {
  LayerShape shape;        ///< head_dim_k == head_dim_v
  uint32_t n_tokens = 0;   ///< cached
  uint32_t n_queries = 1;  ///< query tokens: the last ones cached; each sees what is before it, and itself
  uint32_t n_layers = 1;   ///< caches attended one after the other, as a model does
  uint32_t n_threads = 1;
};

/// Queries over `n_layers` caches of a llama.cpp type, in ggml's own graph and thread pool and llama.cpp's layout.
class FlashAttnBench {
 public:
  /// k, v: [n_tokens][n_kv_heads][head_dim], the same in all layers. mask: [n_queries][n_tokens] halves.
  /// Errors: unknown type; a head that its blocks do not divide.
  static Result<std::unique_ptr<FlashAttnBench>> create(const FlashAttnProblem& problem, int stock_type,
                                                        std::span<const float> k, std::span<const float> v,
                                                        std::span<const uint16_t> mask);
  ~FlashAttnBench();
  FlashAttnBench(const FlashAttnBench&) = delete;
  FlashAttnBench& operator=(const FlashAttnBench&) = delete;

  /// q: [n_queries][n_heads][head_dim], the same in all layers.
  void set_query(std::span<const float> q);
  /// Attends all layers once; returns the seconds it took.
  double run();
  /// [n_queries][n_heads][head_dim] of the last layer, after run().
  std::vector<float> output() const;
  uint64_t cache_bytes() const;  ///< of one layer

  struct Impl;

 private:
  explicit FlashAttnBench(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mikv::llama
