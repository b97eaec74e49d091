// The inner loop of attention, for QK and PV alike: multiply the 16 rows of a tile by 16 numbers of each query row.
// Included once per SIMD target, hence no include guard in the usual sense.

#if defined(MIKV_TILE_DOT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_TILE_DOT_INL
#undef MIKV_TILE_DOT_INL
#else
#define MIKV_TILE_DOT_INL
#endif

#include "codec/tile.hpp"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A vector never has more lanes than a tile; on narrower targets the tile is walked in sub-vectors.
using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
inline HWY_ATTR size_t Width() { return hn::Lanes(DF()); }

// Query rows that are multiplied by one decoded tile row. Accumulators and what decoding needs must fit the registers:
// 32 of them on AVX-512 and NEON, 16 otherwise.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr uint32_t kMaxRows = 8;
#else
constexpr uint32_t kMaxRows = 4;
#endif

inline HWY_ATTR VF CodesToFloat(VU codes) { return hn::ConvertTo(DF(), hn::BitCast(DI(), codes)); }

template <uint32_t kBits, size_t kRow>
inline HWY_ATTR VF ExtractCode(VU word, size_t) {
  constexpr int kShift = int(kBits * kRow);
  constexpr uint32_t kMask = (1u << kBits) - 1;
  if constexpr (kShift + kBits == 32) return CodesToFloat(hn::ShiftRight<kShift>(word));
  return CodesToFloat(hn::And(hn::ShiftRight<kShift>(word), hn::Set(DU(), kMask)));
}

// A decoder loads the words of lanes [lane, lane + width) of a tile once and hands out row after row.
struct Decode2 {
  VU word;
  HWY_ATTR Decode2(const uint8_t* tile, size_t lane)
      : word(hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(tile) + lane)) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return ExtractCode<2, kRow>(word, kRow);
  }
};

struct Decode3 {
  VU word, rest;
  HWY_ATTR Decode3(const uint8_t* tile, size_t lane)
      : word(hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(tile) + lane)),
        rest(hn::PromoteTo(DU(), hn::LoadU(hn::Rebind<uint16_t, DU>(),
                                           reinterpret_cast<const uint16_t*>(tile + 64) + lane))) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    if constexpr (kRow < 10) {
      return ExtractCode<3, kRow>(word, kRow);
    } else if constexpr (kRow < 15) {
      return ExtractCode<3, kRow - 10>(rest, kRow);
    } else {
      const VU high = hn::ShiftLeft<2>(hn::ShiftRight<15>(rest));
      return CodesToFloat(hn::Or(hn::ShiftRight<30>(word), high));
    }
  }
};

struct Decode4 {
  VU low, high;
  HWY_ATTR Decode4(const uint8_t* tile, size_t lane)
      : low(hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(tile) + lane)),
        high(hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(tile) + 16 + lane)) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    if constexpr (kRow < 8) return ExtractCode<4, kRow>(low, kRow);
    return ExtractCode<4, kRow % 8>(high, kRow);
  }
};

struct Decode8 {
  const uint8_t* at;
  HWY_ATTR Decode8(const uint8_t* tile, size_t lane) : at(tile + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return CodesToFloat(hn::PromoteTo(DU(), hn::LoadU(hn::Rebind<uint8_t, DU>(), at + 16 * kRow)));
  }
};

struct Decode16 {
  const hwy::float16_t* at;
  HWY_ATTR Decode16(const uint8_t* tile, size_t lane) : at(reinterpret_cast<const hwy::float16_t*>(tile) + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), at + 16 * kRow));
  }
};

// A tile that was decoded to floats before, because many query rows will meet it.
struct DecodeF32 {
  const float* at;
  HWY_ATTR DecodeF32(const uint8_t* tile, size_t lane) : at(reinterpret_cast<const float*>(tile) + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return hn::LoadU(DF(), at + 16 * kRow);
  }
};

template <class Decoder>
inline HWY_ATTR void DecodeTile(const uint8_t* tile, float* out) {
  for (size_t lane = 0; lane < codec::kTileSide; lane += Width()) {
    const Decoder decoder(tile, lane);
    [&]<size_t... kRow>(std::index_sequence<kRow...>) HWY_ATTR {
      (hn::StoreU(decoder.template Row<kRow>(), DF(), out + 16 * kRow + lane), ...);
    }(std::make_index_sequence<16>());
  }
}

// Independent chains per query row: 4 cycles of FMA latency on 2 ports want 8 accumulators in flight.
template <uint32_t kRows>
constexpr uint32_t Chains() {
  return kRows >= 7 ? 1 : kRows >= 3 ? 2 : 4;
}

template <class Decoder, uint32_t kRows, size_t kRow>
HWY_INLINE HWY_ATTR void TileRow(const Decoder& decoder, const float* coefficients, size_t stride, VF* sums) {
  const VF codes = decoder.template Row<kRow>();
  constexpr uint32_t kChain = kRow % Chains<kRows>();
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) {
    VF& sum = sums[kChain * kRows + r];
    sum = hn::MulAdd(hn::Set(DF(), coefficients[r * stride + kRow]), codes, sum);
  }
}

// Rows kRow..15. Recursion, not a fold over a lambda: a call that is not inlined would force the sums into memory.
template <class Decoder, uint32_t kRows, size_t kRow>
HWY_INLINE HWY_ATTR void TileRowsFrom(const Decoder& decoder, const float* coefficients, size_t stride, VF* sums) {
  TileRow<Decoder, kRows, kRow>(decoder, coefficients, stride, sums);
  if constexpr (kRow + 1 < codec::kTileSide) TileRowsFrom<Decoder, kRows, kRow + 1>(decoder, coefficients, stride, sums);
}

// sums[chain][r] += sum over tile rows i of coefficients[r * stride + i] * row i, in lanes [lane, lane + width).
template <class Decoder, uint32_t kRows>
HWY_INLINE HWY_ATTR void TileDot(const uint8_t* tile, size_t lane, const float* coefficients, size_t stride, VF* sums) {
  const Decoder decoder(tile, lane);
  TileRowsFrom<Decoder, kRows, 0>(decoder, coefficients, stride, sums);
}

template <uint32_t kRows>
HWY_INLINE HWY_ATTR VF SumChains(const VF* sums, uint32_t r) {
  VF total = sums[r];
  for (uint32_t chain = 1; chain < Chains<kRows>(); ++chain) total = hn::Add(total, sums[chain * kRows + r]);
  return total;
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
