// QuerySample: some of a head's latest queries, kept until its segment is frozen. They predict what later tokens ask.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "codec/fp16.hpp"

namespace mikv::tier {

struct QuerySample {
  /// Every 32nd of the last 256 tokens (the topic of the text) and every 8th of the last 64 (a question at its end).
  static constexpr uint32_t kEach = 8, kTokens = 2 * kEach, kStride = 32, kLateStride = 8;

  std::vector<uint16_t> queries;   ///< [kTokens][query heads][dim], halves, times the softmax scale
  std::vector<uint32_t> arrivals;  ///< [kTokens]: put order of the query's own token, plus 1; 0: none yet

  QuerySample() = default;
  QuerySample(uint32_t n_heads, uint32_t dim) : queries(size_t{kTokens} * n_heads * dim), arrivals(kTokens) {}

  /// True if the token with put order `arrival` is to be noted, in a batch whose last one is `last`. Noted tokens of a
  /// batch have different places: threads may write them at once.
  static bool takes(uint32_t arrival, uint32_t last) {
    const bool late = arrival % kLateStride == kLateStride / 2;  // never a multiple of kStride
    return (arrival % kStride == 0 && last - arrival < kEach * kStride) ||
           (late && last - arrival < kEach * kLateStride);
  }
  static uint32_t place_of(uint32_t arrival) {
    return arrival % kStride == 0 ? arrival / kStride % kEach : kEach + arrival / kLateStride % kEach;
  }

  /// Notes query head `head` of n_heads. takes() must be true for the token.
  void note(uint32_t arrival, uint32_t head, uint32_t n_heads, const float* query, uint32_t dim, float scale) {
    const uint32_t place = place_of(arrival);
    uint16_t* to = queries.data() + (size_t{place} * n_heads + head) * dim;
    for (uint32_t c = 0; c < dim; ++c) to[c] = codec::f32_to_f16(codec::finite_f16_range(query[c] * scale));
    arrivals[place] = arrival + 1;
  }

  /// Extends a sample from a file that has only the places of every 32nd token.
  void add_late_places() {
    queries.resize(queries.size() / arrivals.size() * kTokens);
    arrivals.resize(kTokens);
  }

  /// What some of the places hold, each query head of a token for itself.
  struct Part {
    std::vector<float> queries;      ///< [n][dim]
    std::vector<uint32_t> arrivals;  ///< [n], as QuerySample::arrivals
  };
  /// Of places first, first + step, ...: those that were noted.
  Part part(uint32_t first, uint32_t step, uint32_t dim) const {
    const size_t n_heads = queries.size() / (size_t{kTokens} * dim);
    Part of;
    for (uint32_t place = first; place < kTokens; place += step) {
      if (arrivals[place] == 0) continue;
      const auto begin = queries.begin() + std::ptrdiff_t(place * n_heads * dim);
      std::transform(begin, begin + std::ptrdiff_t(n_heads * dim), std::back_inserter(of.queries), codec::f16_to_f32);
      of.arrivals.insert(of.arrivals.end(), n_heads, arrivals[place]);
    }
    return of;
  }

  uint64_t bytes() const { return queries.size() * sizeof(uint16_t) + arrivals.size() * sizeof(uint32_t); }
  static uint64_t bytes_of(uint64_t n_heads, uint64_t dim) {
    return kTokens * (n_heads * dim * sizeof(uint16_t) + sizeof(uint32_t));
  }
};

}  // namespace mikv::tier
