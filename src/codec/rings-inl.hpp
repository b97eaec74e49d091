// The search for the codes of trellis rings, one ring per lane. Included once per SIMD target, hence no ordinary
// include guard.
//
// It is the search of codec/trellis.cpp, where a state is a lane: the same sums in the same order, so that codes are
// equal to the bit.

#if defined(MIKV_RINGS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_RINGS_INL
#undef MIKV_RINGS_INL
#else
#define MIKV_RINGS_INL
#endif

#include <bit>

#include "codec/trellis_places.hpp"
#include "hwy/highway.h"

// Loops whose trip count is known, so that what they index is known too. Not without SIMD, where each operation is a
// loop already.
#undef MIKV_UNROLL
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
#define MIKV_UNROLL
#else
#define MIKV_UNROLL _Pragma("GCC unroll 16")
#endif

HWY_BEFORE_NAMESPACE();
namespace mikv::codec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kTileSide>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
inline constexpr uint32_t kWidth = HWY_MIN(HWY_LANES(float), kTileSide);

// a * b + c, rounded once: costs must not depend on what the target can do.
HWY_ATTR inline VF FusedMulAdd(VF a, VF b, VF c) {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  float x[kWidth], y[kWidth], z[kWidth];
  hn::StoreU(a, DF(), x), hn::StoreU(b, DF(), y), hn::StoreU(c, DF(), z);
  for (uint32_t i = 0; i < kWidth; ++i) {
    // In double precision the product is exact, and the sum is rounded to odd: rounded once more, to single precision,
    // it is what one rounding gives.
    const double product = double(x[i]) * y[i], sum = product + z[i], of_z = sum - product;
    const double error = (product - (sum - of_z)) + (z[i] - of_z);
    uint64_t bits = std::bit_cast<uint64_t>(sum);
    if (error != 0.0 && bits % 2 == 0) (error > 0.0) == (sum > 0.0) ? ++bits : --bits;
    x[i] = float(std::bit_cast<double>(bits));
  }
  return hn::LoadU(DF(), x);
#else
  return hn::MulAdd(a, b, c);
#endif
}

// Codes of kWidth rings. A cost is a float whose lowest bits say where it came from (codec/trellis.cpp).
template <Ring kRing, uint32_t kBits>
struct RingSearch {
  static constexpr uint32_t kLength = kPlaces<kRing, kBits>.length;
  static constexpr uint32_t kStates = 1u << (window_bits(kRing, kBits) - kBits), kCodes = 1u << kBits;
  static constexpr int32_t kFrom = kCodes - 1;

  static HWY_ATTR HWY_INLINE VF Level(uint32_t window) {
    return hn::Set(DF(), float(trellis_levels(kRing, kBits)[window]) - kTrellisCentre);
  }

  struct Paths {
    HWY_ALIGN int32_t reached[kLength * kStates * kWidth];  // [step][state][lane]

    HWY_ATTR HWY_INLINE VF CostOf(VI state) const {
      const VI at = hn::Add(hn::ShiftLeft<std::countr_zero(kWidth)>(state), hn::Iota(DI(), 0));
      const auto* last = reinterpret_cast<const float*>(reached + (kLength - 1) * kStates * kWidth);
      return hn::GatherIndex(DF(), last, at);
    }
  };

  // From costs of the states to those after a round; x: [kLength][kWidth].
  static HWY_ATTR HWY_INLINE void Run(const float* x, VF* cost, Paths& paths) {
    const VI keep = hn::Set(DI(), ~kFrom);
    for (uint32_t t = 0; t < kLength; ++t) {
      const VF value = hn::Load(DF(), x + (kLength - 1 - t) * kWidth);
      VF next[kStates];
      MIKV_UNROLL
      for (uint32_t s = 0; s < kStates; ++s) {
        VI best = hn::Zero(DI());
        MIKV_UNROLL
        for (uint32_t above = 0; above < kCodes; ++above) {
          const uint32_t window = above * kStates + s;
          const VF off = hn::Sub(value, Level(window));
          const VF all = FusedMulAdd(off, off, cost[window >> kBits]);
          const VI step = hn::OrAnd(hn::Set(DI(), int32_t(above)), hn::BitCast(DI(), all), keep);
          best = above ? hn::Min(best, step) : step;
        }
        hn::Store(best, DI(), paths.reached + (t * kStates + s) * kWidth);
        next[s] = hn::BitCast(DF(), best);
      }
      MIKV_UNROLL
      for (uint32_t s = 0; s < kStates; ++s) cost[s] = next[s];
    }
  }

  // The paths that end in `state`; returns where they began.
  static HWY_ATTR HWY_INLINE VI Trace(const Paths& paths, VI state, VI* codes) {
    for (uint32_t t = kLength; t-- > 0;) {
      const VI at = hn::Add(hn::ShiftLeft<std::countr_zero(kWidth)>(state), hn::Iota(DI(), 0));
      const VI from = hn::And(hn::GatherIndex(DI(), paths.reached + t * kStates * kWidth, at), hn::Set(DI(), kFrom));
      const VI window = hn::Or(hn::ShiftLeft<std::countr_zero(kStates)>(from), state);
      codes[kLength - 1 - t] = hn::And(window, hn::Set(DI(), kFrom));
      state = hn::ShiftRight<kBits>(window);
    }
    return state;
  }

  // Rings that go through state `seam` between their last code and their first. Returns what they cost.
  static HWY_ATTR HWY_INLINE VF RunThrough(VI seam, const float* x, Paths& paths) {
    VF cost[kStates];
    for (uint32_t s = 0; s < kStates; ++s) {
      const auto here = hn::RebindMask(DF(), hn::Eq(seam, hn::Set(DI(), int32_t(s))));
      cost[s] = hn::IfThenElse(here, hn::Zero(DF()), hn::Set(DF(), 1e30f));
    }
    Run(x, cost, paths);
    return paths.CostOf(seam);
  }

  static HWY_ATTR HWY_INLINE void Solve(const float* x, VI* codes) {
    Paths paths, other;
    VF cost[kStates];
    for (uint32_t s = 0; s < kStates; ++s) cost[s] = hn::Zero(DF());
    Run(x, cost, paths);
    Run(x, cost, paths);
    VI end = hn::Zero(DI());
    VF least = cost[0];
    for (uint32_t s = 1; s < kStates; ++s) {
      const auto less = hn::Lt(cost[s], least);
      end = hn::IfThenElse(hn::RebindMask(DI(), less), hn::Set(DI(), int32_t(s)), end);
      least = hn::IfThenElse(less, cost[s], least);
    }
    const VI before = Trace(paths, end, codes);
    const VF through_end = RunThrough(end, x, paths);
    Trace(paths, end, codes);
    if (hn::AllTrue(DI(), hn::Eq(before, end))) return;
    const auto better = hn::RebindMask(DI(), hn::Lt(RunThrough(before, x, other), through_end));
    VI of_other[kLength];
    Trace(other, before, of_other);
    for (uint32_t i = 0; i < kLength; ++i) codes[i] = hn::IfThenElse(better, of_other[i], codes[i]);
  }
};

// The codes of tiles, [row or lane of the tile], for kWidth tokens; what they stand for, less the centre, to `levels`.
// x: [16][kWidth].
template <Ring kRing, uint32_t kBits>
HWY_ATTR void EncodeTiles(const float* x, VF inverse, int32_t* codes, float* levels) {
  constexpr const Places& places = kPlaces<kRing, kBits>;
  constexpr uint32_t kWindow = window_bits(kRing, kBits);
  HWY_ALIGN static constexpr auto kTable = [] {
    std::array<float, 64> table{};
    for (uint32_t i = 0; i < 64; ++i) table[i] = float(trellis_levels(kRing, kBits)[i]) - kTrellisCentre;
    return table;
  }();
  HWY_ALIGN float in_ring[kTileSide * kWidth];
  for (uint32_t i = 0; i < kTileSide; ++i) {
    hn::Store(hn::Mul(hn::Load(DF(), x + places.at[i] * kWidth), inverse), DF(), in_ring + i * kWidth);
  }
  VI found[kTileSide];
  for (uint32_t ring = 0; ring < kTileSide; ring += places.length) {
    RingSearch<kRing, kBits>::Solve(in_ring + ring * kWidth, found + ring);
  }
  for (uint32_t i = 0; i < kTileSide; ++i) {
    const uint32_t ring = i / places.length * places.length;
    VI window = found[i];
    for (uint32_t j = 1; j * kBits < kWindow; ++j) {
      const VI next = found[ring + (i + j) % places.length];
      window = hn::Or(window, hn::ShiftLeftSame(next, int(j * kBits)));
    }
    window = hn::And(window, hn::Set(DI(), (1 << kWindow) - 1));
    hn::Store(found[i], DI(), codes + places.at[i] * kWidth);
    hn::Store(hn::GatherIndex(DF(), kTable.data(), window), DF(), levels + places.at[i] * kWidth);
  }
}

// The same where a code is its whole window: the nearest level of a table in ascending order.
HWY_ATTR inline void EncodeTilesAlone(const float* x, VF inverse, int32_t* codes, float* levels) {
  for (uint32_t i = 0; i < kTileSide; ++i) {
    const VF at = FusedMulAdd(hn::Load(DF(), x + i * kWidth), inverse, hn::Set(DF(), kTrellisCentre));
    const VF twice = hn::Add(at, at);
    VI code = hn::Zero(DI());
    VF level = hn::Set(DF(), float(kLevels6[0]) - kTrellisCentre);
    for (size_t c = 1; c < kLevels6.size(); ++c) {
      const auto above = hn::Gt(twice, hn::Set(DF(), float(kLevels6[c - 1]) + float(kLevels6[c])));
      code = hn::IfThenElse(hn::RebindMask(DI(), above), hn::Set(DI(), int32_t(c)), code);
      level = hn::IfThenElse(above, hn::Set(DF(), float(kLevels6[c]) - kTrellisCentre), level);
    }
    hn::Store(code, DI(), codes + i * kWidth);
    hn::Store(level, DF(), levels + i * kWidth);
  }
}

}  // namespace mikv::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
