#include "codec/trellis.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "codec/cpu_clones.hpp"
#include "codec/scale8.hpp"
#include "codec/trellis_places.hpp"

#define MIKV_INLINE inline __attribute__((always_inline))

namespace mikv::codec {
namespace {

constexpr uint32_t kSide = kTileSide;

/// Vectors of kN numbers, with the operators that the compiler gives them on any CPU.
template <uint32_t kN>
struct Vectors {
  typedef float Floats __attribute__((vector_size(4 * kN)));
  typedef int32_t Ints __attribute__((vector_size(4 * kN)));
};

/// The search for one ring. A state is the codes after the present one as far as they reach into its window; codes are
/// therefore taken from the last to the first.
///
/// A cost is a float, never negative, whose lowest bits are those of the window above the state it leads to: floats of
/// equal sign are ordered as integers are, so that the least of them also says where it came from. That takes 4 of 23
/// bits of precision.
template <uint32_t kBits, uint32_t kWindow, uint32_t kLength>
struct Search {
  static constexpr uint32_t kStates = 1u << (kWindow - kBits), kCodes = 1u << kBits;
  using Floats = typename Vectors<kStates>::Floats;
  using Ints = typename Vectors<kStates>::Ints;
  static constexpr int32_t kFrom = kCodes - 1;

  Floats cost;
  Ints reached[kLength];

  /// The costs of the states that a code with `above` as the codes above its window comes from.
  MIKV_INLINE Floats before(uint32_t above) const {
#ifdef __clang__  // has no shuffle by variable indices, and needs none to make one of this
    Floats from;
    for (uint32_t s = 0; s < kStates; ++s) from[s] = cost[(above * kStates + s) >> kBits];
    return from;
#else
    Ints states;
    for (uint32_t s = 0; s < kStates; ++s) states[s] = int32_t((above * kStates + s) >> kBits);
    return __builtin_shuffle(cost, states);
#endif
  }

  MIKV_INLINE void run(const float* x, const Floats (&level)[kCodes]) {
    for (uint32_t t = 0; t < kLength; ++t) {
      const float value = x[kLength - 1 - t];
      Ints step[kCodes];
#pragma GCC unroll 16
      for (uint32_t above = 0; above < kCodes; ++above) {
        const Floats off = value - level[above];
        const Floats all = before(above) + off * off;
        step[above] = ((Ints)all & ~kFrom) | int32_t(above);
      }
#pragma GCC unroll 16
      for (uint32_t width = kCodes / 2; width > 0; width /= 2) {
#pragma GCC unroll 16
        for (uint32_t i = 0; i < width; ++i) step[i] = step[i] < step[i + width] ? step[i] : step[i + width];
      }
      reached[t] = step[0];
      cost = (Floats)step[0];
    }
  }

  /// The path that ends in `state`; returns where it began.
  MIKV_INLINE uint32_t trace(uint32_t state, uint8_t* codes) const {
    for (uint32_t t = kLength; t-- > 0;) {
      const uint32_t window = uint32_t(reached[t][state] & kFrom) * kStates + state;
      codes[kLength - 1 - t] = uint8_t(window & (kCodes - 1));
      state = window >> kBits;
    }
    return state;
  }

  /// The least cost of a ring that goes through state `seam` between its last code and its first.
  MIKV_INLINE float run_through(uint32_t seam, const float* x, const Floats (&level)[kCodes]) {
    cost = Floats{} + 1e30f;
    cost[seam] = 0.0f;
    run(x, level);
    return cost[seam];
  }

  /// The best ring goes through some state at its seam. Twice round from anywhere shows two that are good there: where
  /// the best path ends, and where it was one round before.
  MIKV_INLINE void solve(const float* x, const Floats (&level)[kCodes], uint8_t* codes) {
    cost = Floats{};
    run(x, level);
    run(x, level);
    uint32_t end = 0;
    for (uint32_t s = 1; s < kStates; ++s) end = cost[s] < cost[end] ? s : end;
    const uint32_t before = trace(end, codes);
    const float through_end = run_through(end, x, level);
    if (before == end) {
      trace(end, codes);
      return;
    }
    Search other;
    if (other.run_through(before, x, level) < through_end) {
      other.trace(before, codes);
    } else {
      trace(end, codes);
    }
  }
};

template <Ring kRing, uint32_t kBits>
MIKV_INLINE void read_levels(const uint8_t* codes, uint8_t* levels) {
  constexpr const Places& places = kPlaces<kRing, kBits>;
  constexpr const Levels& table = trellis_levels(kRing, kBits);
  for (uint32_t i = 0; i < kSide; ++i) {
    const uint32_t ring = i / places.length * places.length;
    uint32_t window = 0;
    for (uint32_t j = 0; j * kBits < window_bits(kRing, kBits); ++j) {
      window |= uint32_t{codes[places.at[ring + (i + j) % places.length]]} << j * kBits;
    }
    levels[places.at[i]] = table[window & ((1u << window_bits(kRing, kBits)) - 1)];
  }
}

/// Where a code is its whole window: the nearest level of a table in ascending order.
MIKV_INLINE void encode_alone(const Levels& table, const float* x, float inverse, uint8_t* codes, uint8_t* levels) {
  for (uint32_t i = 0; i < kSide; ++i) {
    const float twice = 2.0f * (x[i] * inverse + kTrellisCentre);
    uint32_t code = 0;
    for (size_t c = 1; c < table.size(); ++c) code += twice > float(table[c - 1]) + float(table[c]);
    codes[i] = uint8_t(code);
    levels[i] = table[code];
  }
}

template <Ring kRing, uint32_t kBits>
MIKV_INLINE void encode(const float* x, float inverse, uint8_t* codes, uint8_t* levels) {
  constexpr uint32_t kWindow = window_bits(kRing, kBits);
  if constexpr (kWindow == kBits) {
    encode_alone(trellis_levels(kRing, kBits), x, inverse, codes, levels);
  } else {
    constexpr const Places& places = kPlaces<kRing, kBits>;
    using Finder = Search<kBits, kWindow, places.length>;
    typename Finder::Floats level[Finder::kCodes];
    for (uint32_t above = 0; above < Finder::kCodes; ++above) {
      for (uint32_t s = 0; s < Finder::kStates; ++s) {
        level[above][s] = float(trellis_levels(kRing, kBits)[above * Finder::kStates + s]) - kTrellisCentre;
      }
    }
    float in_ring[kSide];
    for (uint32_t i = 0; i < kSide; ++i) in_ring[i] = x[places.at[i]] * inverse;
    uint8_t found[kSide];
    Finder search;
    for (uint32_t ring = 0; ring < kSide; ring += places.length) search.solve(in_ring + ring, level, found + ring);
    for (uint32_t i = 0; i < kSide; ++i) codes[places.at[i]] = found[i];
    read_levels<kRing, kBits>(codes, levels);
  }
}

/// Calls visit(ring, bits), both as constants.
template <typename Visit>
MIKV_INLINE void with_ring(Ring ring, uint32_t bits, Visit visit) {
  const auto with_bits = [&](auto constant_ring) __attribute__((always_inline)) {
    visit_bits<has_mixed_tiles>(
        bits, [&](auto constant_bits) __attribute__((always_inline)) { visit(constant_ring, constant_bits); });
  };
  ring == Ring::key ? with_bits(std::integral_constant<Ring, Ring::key>())
                    : with_bits(std::integral_constant<Ring, Ring::value>());
}

// Local to this file, as GCC exports the choice between the versions of a function that others see.
MIKV_FOR_EACH_CPU
void encode_for_cpu(Ring ring, uint32_t bits, const float* x, float inverse, uint8_t* codes, uint8_t* levels) {
  with_ring(
      ring, bits, [&](auto r, auto b) __attribute__((always_inline)) { encode<r(), b()>(x, inverse, codes, levels); });
}

}  // namespace

void encode_ring(Ring ring, uint32_t bits, const float* x, float inverse, uint8_t* codes, uint8_t* levels) {
  encode_for_cpu(ring, bits, x, inverse, codes, levels);
}

void ring_levels(Ring ring, uint32_t bits, const uint8_t* codes, uint8_t* levels) {
  with_ring(ring, bits, [&](auto r, auto b) __attribute__((always_inline)) { read_levels<r(), b()>(codes, levels); });
}

uint8_t quantise_trellis(Ring ring, const float* values, const uint8_t* bits, const float* weights, uint32_t n_tiles,
                         uint8_t* codes) {
  float squares = 0.0f, sum_of_weights = 0.0f;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < kSide; ++i) sum += values[t * kSide + i] * values[t * kSide + i];
    squares += weights[t] * sum;
    sum_of_weights += weights[t] * float(kSide);
  }
  const float inverse = 1.0f / scale8_to_f32(scale8_from_f32(kTrellisUnit * std::sqrt(squares / sum_of_weights)));
  float projected = 0.0f, level_squares = 0.0f;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    const float* x = values + t * kSide;
    uint8_t levels[kSide];
    encode_ring(ring, bits[t], x, inverse, codes + t * kSide, levels);
    float dot = 0.0f, square = 0.0f;
    for (uint32_t i = 0; i < kSide; ++i) {
      const float level = float(levels[i]) - kTrellisCentre;
      dot += x[i] * level, square += level * level;
    }
    projected += weights[t] * dot;
    level_squares += weights[t] * square;
  }
  return scale8_from_f32(projected / level_squares);  // no level is 0
}

}  // namespace mikv::codec
