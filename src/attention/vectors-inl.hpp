// Vectors of a tile's width, and what all kernels share. Included once per SIMD target, hence no ordinary include
// guard.

#if defined(MIKV_VECTORS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_VECTORS_INL
#undef MIKV_VECTORS_INL
#else
#define MIKV_VECTORS_INL
#endif

#include <limits>

#include "attention/kernel_api.hpp"
#include "codec/fp16.hpp"
#include "codec/quantiser.hpp"
#include "codec/scale8.hpp"
#include "codec/trellis_levels.hpp"
#include "hwy/highway.h"

// Highway 1.0 checks the CPU for AVX-512 VNNI, but asks the compiler for AVX VNNI instead.
#if HWY_TARGET == HWY_AVX3_DL
#undef HWY_TARGET_STR
#define HWY_TARGET_STR \
  HWY_TARGET_STR_AVX3  \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,gfni,avxvnni,avx512vnni,avx512bitalg,avx512vpopcntdq"
#endif

// dot_kernels.cpp: the target has AVX-VNNI, or dotprod.
#ifndef MIKV_DOT_PRODUCTS
#define MIKV_DOT_PRODUCTS 0
#endif
#if HWY_TARGET == HWY_NEON && MIKV_DOT_PRODUCTS
#undef HWY_TARGET_STR
#define HWY_TARGET_STR "arch=armv8.2-a+crypto+dotprod"
#endif
// Whether bytes are multiplied by fours (byte_products-inl.hpp), and whether tiles of codes are multiplied as integers
// (integer_tiles-inl.hpp) or as floats.
#ifndef MIKV_HAS_INTEGER_TILES
#define MIKV_HAS_BYTE_PRODUCTS (HWY_TARGET == HWY_AVX3_DL || MIKV_DOT_PRODUCTS)
#define MIKV_HAS_INTEGER_TILES (MIKV_HAS_BYTE_PRODUCTS || HWY_TARGET == HWY_AVX2)
#endif

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A vector never has more lanes than a tile; on narrower targets the tile is walked in sub-vectors.
using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
using VI = hn::Vec<DI>;
inline HWY_ATTR size_t Width() { return hn::Lanes(DF()); }

// Query rows that are multiplied by one decoded tile row. Accumulators and what decoding needs must fit the registers:
// 32 of them on AVX-512 and NEON, 16 otherwise.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
constexpr uint32_t kMaxRows = 8;
#else
constexpr uint32_t kMaxRows = 6;
#endif
static_assert(kMaxRows <= kMaxKernelRows);

constexpr float kHidden = -std::numeric_limits<float>::infinity();

HWY_INLINE HWY_ATTR VF LoadHalves(const uint8_t* at) {
  return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), reinterpret_cast<const hwy::float16_t*>(at)));
}

// What codes of a group's tokens stand for, x = alpha * level + beta, in lanes [lane, lane + width) of a block. Of keys
// by channel a group is a tile, and a lane of the scales a channel.
struct Scales {
  VF alpha, beta;
};

// base: of the block's scales of K or V.
HWY_INLINE HWY_ATTR Scales LoadScales(const codec::BlockLayout& layout, const uint8_t* base, uint32_t group,
                                      size_t lane) {
  if (layout.mixed()) {
    const hn::Rebind<uint8_t, DU> d8;
    const VU bytes = hn::PromoteTo(DU(), hn::LoadU(d8, base + lane));
    const VU bits = hn::Add(hn::ShiftLeft<codec::kScale8Shift>(bytes), hn::Set(DU(), codec::kScale8Bias));
    const VF alpha = hn::BitCast(DF(), bits);
    return {alpha, hn::Mul(alpha, hn::Set(DF(), -codec::kTrellisCentre))};
  }
  const uint8_t* halves = base + layout.group_scale_bytes() * group + 2 * lane;
  const VF alpha = LoadHalves(halves);
  if (layout.symmetric) return {alpha, hn::Mul(alpha, hn::Set(DF(), -float(codec::symmetric_zero(layout.bits))))};
  return {alpha, LoadHalves(halves + 2 * kLanes)};
}

// Tiles of K or of V of consecutive blocks, where the block has them or where they were unpacked to.
struct Tiles {
  const uint8_t* first = nullptr;  // of the first block
  size_t block_stride = 0;
  const codec::TileTable* row = nullptr;

  HWY_INLINE const uint8_t* Of(uint32_t block, uint32_t tile) const {
    return first + block * block_stride + row->at[tile];
  }
  HWY_INLINE uint32_t Bits(uint32_t tile) const { return row->bits[tile]; }
};

// Memory of the next strip, fetched evenly between the products of this one: the access pattern (parts of blocks) is
// not one that the CPU predicts, a cache in use has been pushed out by the model's weights, and a core has few reads in
// flight.
struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* until = nullptr;
  size_t bytes_per_call = 0;

  HWY_INLINE HWY_ATTR void Fetch() {
    for (until += bytes_per_call; at < until; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// Lanes [lane, lane + width) of a tile that belong to the pair's group.
HWY_INLINE HWY_ATTR hn::Mask<DF> LanesInside(const TilePair& pair, size_t lane) {
  const VF index = hn::Iota(DF(), float(lane));
  return hn::And(hn::Ge(index, hn::Set(DF(), float(pair.first))), hn::Lt(index, hn::Set(DF(), float(pair.last))));
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
