// Attention in tests: a request with everything that LayerAttendArgs points to, how to run it, and what must come out,
// computed here in double precision from dump(), independently of the library's own reference.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "attention/kernel_api.hpp"
#include "test_cache.hpp"

namespace mikv::test {

/// One attend() and the memory it borrows. Change the public fields, then run() or expect().
struct Request {
  Request(const LayerShape& shape, uint32_t n_tokens, Random& random, size_t gap = 0);

  LayerShape shape;
  uint32_t n_tokens;
  size_t gap;            ///< unused floats after every head and every token, of q and of out
  std::vector<float> q;  ///< [n_tokens][n_heads][head_dim_k] with gaps
  float scale;
  float softcap = 0.0f;
  std::vector<float> slopes, sinks;  ///< [n_heads], or empty
  std::vector<SegmentId> segments;
  bool record = false, commit = false;
  uint32_t commit_from = 0;

  Mask::Type mask_type = Mask::Type::none;
  uint32_t mask_cells = 0;
  std::vector<float> mask;  ///< [n_tokens][mask_cells], finite or -inf; the type is how it is handed over

  /// Every token sees cells below n_cells, with `hide(token, cell)` hidden and `bias(token, cell)` added.
  template <typename Value>
  void set_mask(Mask::Type type, uint32_t n_cells, const Value& value) {
    mask_type = type;
    mask_cells = n_cells;
    mask.resize(size_t{n_tokens} * n_cells);
    for (uint32_t t = 0; t < n_tokens; ++t)
      for (uint32_t cell = 0; cell < n_cells; ++cell) {
        const float given = value(t, cell);
        mask[size_t{t} * n_cells + cell] = type == Mask::Type::f16 ? rounded_to_half(given) : given;
      }
  }
  /// Token t sees cells 0..first_visible + t.
  void set_causal(Mask::Type type, uint32_t n_cells, uint32_t first_visible);

  size_t q_head_stride() const { return shape.head_dim_k + gap; }
  size_t q_token_stride() const { return shape.n_heads * q_head_stride() + gap; }
  size_t out_head_stride() const { return shape.head_dim_v + gap; }
  size_t out_token_stride() const { return shape.n_heads * out_head_stride() + gap; }
  uint32_t group() const { return shape.n_heads / shape.n_kv_heads; }
  const float* query(uint32_t token, uint32_t head) const {
    return &q[token * q_token_stride() + head * q_head_stride()];
  }
  float mask_at(uint32_t token, Cell cell) const;
};

/// attend() on n_threads threads, or reference_attend(). Returns out without gaps, [n_tokens][n_heads][head_dim_v], and
/// fails the test if a gap was written.
std::vector<float> run(LayerCache& layer, const Request& request, uint32_t n_threads = 1);
/// Several requests in one call, as one for each stream of a batch.
std::vector<std::vector<float>> run_together(LayerCache& layer, std::span<const Request> requests,
                                             uint32_t n_threads = 1);
/// run() on one thread as a call that `around` makes; `out` is filled in if it went well.
Status run_around(LayerCache& layer, const Request& request,
                  const std::function<Status(const std::function<Status()>&)>& around, std::vector<float>& out);
std::vector<float> run_reference(const LayerCache& layer, const Request& request);

/// Calls back with each SIMD target forced in turn, and then forces the one that was in use. Fails the test if forcing
/// one did not make it the one in use.
void for_each_target(const std::function<void(const std::string& target)>& test);

/// Tokens of one KV head that are still stored, of the given segments.
std::vector<StoredToken> stored_tokens(const LayerCache& layer, const std::vector<SegmentId>& segments,
                                       uint32_t kv_head);

/// The attention weights of one query row over `tokens`; their sum is below 1 where there is an attention sink.
std::vector<double> weights(const std::vector<StoredToken>& tokens, const Request& request, uint32_t token,
                            uint32_t head);

struct Expected {
  std::vector<double> out;
  std::vector<double> bound;  ///< of |out - computed|, for a kernel in single precision; derived in test_attention.cpp
  std::vector<double> bound_of_integers;  ///< the same for one that rounds queries and weights to 16 bits
};
Expected expect(const LayerCache& layer, const std::vector<SegmentId>& segments, const Request& request);
/// The same over given tokens [kv_head].
Expected expect(const std::vector<std::vector<StoredToken>>& tokens, const Request& request, bool rotated);

/// Every element within the bound of the target in use; NaN and infinity never are. Names the worst element.
testing::AssertionResult matches(const std::vector<float>& out, const Expected& expected);

}  // namespace mikv::test
