// QuerySample: some of a head's latest queries, kept until its segment is frozen: what the tokens that come next are
// likely to ask.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "codec/fp16.hpp"

namespace mikv::tier {

struct QuerySample {
  /// Every 32nd of the last 256 tokens, what the text is about; every 8th of the last 64, where the question stands, if
  /// there is one.
  static constexpr uint32_t kEach = 8, kTokens = 2 * kEach, kStride = 32, kLateStride = 8;

  std::vector<uint16_t> queries;   ///< [kTokens][query heads][dim], halves, times the softmax scale
  std::vector<uint32_t> arrivals;  ///< [kTokens]: put order of the query's own token, plus 1; 0: none yet

  QuerySample() = default;
  QuerySample(uint32_t n_heads, uint32_t dim) : queries(size_t{kTokens} * n_heads * dim), arrivals(kTokens) {}

  /// Whether the token that was put as number `arrival`, one of a batch whose last one is `last`, is to be noted.
  /// Tokens of a batch that are noted have places of their own: threads may write them together.
  static bool takes(uint32_t arrival, uint32_t last) {
    const bool late = arrival % kLateStride == kLateStride / 2;  // never a multiple of kStride
    return (arrival % kStride == 0 && last - arrival < kEach * kStride) ||
           (late && last - arrival < kEach * kLateStride);
  }
  static uint32_t place_of(uint32_t arrival) {
    return arrival % kStride == 0 ? arrival / kStride % kEach : kEach + arrival / kLateStride % kEach;
  }

  /// Query head `head` of n_heads of a token that takes() said yes to.
  void note(uint32_t arrival, uint32_t head, uint32_t n_heads, const float* query, uint32_t dim, float scale) {
    const uint32_t place = place_of(arrival);
    uint16_t* to = queries.data() + (size_t{place} * n_heads + head) * dim;
    for (uint32_t c = 0; c < dim; ++c) to[c] = codec::f32_to_f16(codec::finite_f16_range(query[c] * scale));
    arrivals[place] = arrival + 1;
  }

  /// Makes one of kTokens of a sample that was saved when there were only the places of every 32nd token.
  void add_late_places() {
    queries.resize(queries.size() / arrivals.size() * kTokens);
    arrivals.resize(kTokens);
  }

  uint64_t bytes() const { return queries.size() * sizeof(uint16_t) + arrivals.size() * sizeof(uint32_t); }
};

}  // namespace mikv::tier
