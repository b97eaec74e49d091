// Decoding: what each format makes of a tile, four rows at a time as bytes, or row by row as floats. Included once per SIMD
// target. See codec/tile.hpp for where codes stand and codec/levels.hpp for what they stand for.

#if defined(MIKV_QUADS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_QUADS_INL
#undef MIKV_QUADS_INL
#else
#define MIKV_QUADS_INL
#endif

#include <type_traits>
#include <utility>

#include "attention/vectors-inl.hpp"
#include "codec/block.hpp"
#include "codec/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// A table of levels: in a register, but for the scalar target, whose register is one word.
#if HWY_TARGET == HWY_SCALAR
using LevelTable = const uint8_t*;
HWY_INLINE LevelTable LoadLevels(codec::Codebook codebook, uint32_t bits) { return codec::levels_of(codebook, bits).data(); }
#else
using LevelTable = VU;
HWY_INLINE HWY_ATTR LevelTable LoadLevels(codec::Codebook codebook, uint32_t bits) {
  return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(codec::levels_of(codebook, bits).data()));
}
#endif
// Of a layout whose tiles have the same bits; of mixed ones, what is not used.
HWY_INLINE HWY_ATTR LevelTable LoadLevels(const codec::BlockLayout& layout) {
  return LoadLevels(layout.codebook(), layout.bits);
}

// Levels of the codes in the low kBits bits of each byte; the bits above them are anything.
template <uint32_t kBits>
HWY_INLINE HWY_ATTR VU LookUp(LevelTable levels, VU codes) {
#if HWY_TARGET == HWY_AVX3_DL
  // Takes six bits of each byte, and the table repeats: no mask, so the table costs what masking would.
  return VU{_mm512_permutexvar_epi8(codes.raw, levels.raw)};
#elif HWY_TARGET == HWY_SCALAR
  uint32_t word = 0;
  for (uint32_t byte = 0; byte < 4; ++byte) word |= uint32_t{levels[codes.raw >> 8 * byte & 63]} << 8 * byte;
  return VU(word);
#else
  const hn::Repartition<uint8_t, DU> bytes;
  const VU masked = hn::And(codes, hn::Set(DU(), ((1u << kBits) - 1) * 0x01010101u));
  return hn::BitCast(DU(), hn::TableLookupBytes(hn::BitCast(bytes, levels), hn::BitCast(bytes, masked)));
#endif
}

HWY_INLINE HWY_ATTR VU LoadWords(const uint8_t* words, size_t lane) {
  return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(words) + lane);
}

// u16 nibbles of 16 bytes each, to the low half of their bytes (codec/tile.hpp).
HWY_INLINE HWY_ATTR VU LoadNibbles(const uint8_t* at, size_t lane) {
  const hn::Rebind<uint16_t, DU> d16;
  const VU n = hn::PromoteTo(DU(), hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at) + lane));
  return hn::Or(n, hn::ShiftLeft<12>(n));
}

// Each loads the words of lanes [lane, lane + width) of a tile once and hands out quad after quad.
struct Quads1 {
  LevelTable levels;
  VU nibbles;
  HWY_ATTR Quads1(const uint8_t* tile, size_t lane, LevelTable table) : levels(table), nibbles(LoadNibbles(tile, lane)) {}
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<1>(levels, hn::ShiftRight<kQuad>(nibbles));
  }
};

struct Quads2 {
  LevelTable levels;
  VU word;
  HWY_ATTR Quads2(const uint8_t* tile, size_t lane, LevelTable table) : levels(table), word(LoadWords(tile, lane)) {}
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<2>(levels, hn::ShiftRight<2 * kQuad>(word));
  }
};

// In each byte, the low two bits of `low` and the rest of `high`.
HWY_INLINE HWY_ATTR VU LowBitsOf(VU low, VU high) {
  const VU mask = hn::Set(DU(), 0x03030303u);
#if HWY_TARGET == HWY_AVX3_DL
  return VU{_mm512_ternarylogic_epi32(mask.raw, low.raw, high.raw, 0xca)};
#else
  return hn::Or(hn::And(mask, low), hn::AndNot(mask, high));
#endif
}

struct Quads3 {
  LevelTable levels;
  VU word, nibbles;
  HWY_ATTR Quads3(const uint8_t* tile, size_t lane, LevelTable table) : levels(table), word(LoadWords(tile, lane)) {
    nibbles = LoadNibbles(tile + 64, lane);
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    if constexpr (kQuad < 2) return LookUp<3>(levels, hn::ShiftRight<3 * kQuad>(word));
    if constexpr (kQuad == 3) return LookUp<3>(levels, nibbles);
    return LookUp<3>(levels, LowBitsOf(hn::ShiftRight<6>(word), hn::ShiftRight<1>(nibbles)));
  }
};

struct Quads4 {
  LevelTable levels;
  VU low, high;
  HWY_ATTR Quads4(const uint8_t* tile, size_t lane, LevelTable table)
      : levels(table), low(LoadWords(tile, lane)), high(LoadWords(tile + 64, lane)) {}
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<4>(levels, hn::ShiftRight<4 * (kQuad % 2)>(kQuad < 2 ? low : high));
  }
};

// Codes that are their own levels. Also a tile of fewer bits that was unpacked before, because many query rows will meet it.
struct Quads8 {
  static constexpr size_t kTileBytes = codec::tile_bytes(8);
  const uint8_t* at;
  HWY_ATTR Quads8(const uint8_t* tile, size_t lane, LevelTable) : at(tile + 4 * lane) {}
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LoadWords(at + 64 * kQuad, 0);
  }
  // Writes all 16 lanes of another format's tile.
  template <class Quads>
  static HWY_ATTR void Unpack(const uint8_t* tile, LevelTable levels, uint8_t* out) {
    for (size_t lane = 0; lane < codec::kTileSide; lane += Width()) {
      const Quads quads(tile, lane, levels);
      [&]<int... kQuad>(std::integer_sequence<int, kQuad...>) HWY_ATTR {
        (hn::StoreU(quads.template Quad<kQuad>(), DU(), reinterpret_cast<uint32_t*>(out + 64 * kQuad) + lane), ...);
      }(std::make_integer_sequence<int, 4>());
    }
  }
};

// Stands for tiles that each have bits of their own.
struct QuadsMixed {};

// Calls work with the class that decodes a mixed tile and its table of levels.
template <class Work>
HWY_INLINE HWY_ATTR void WithQuads(uint32_t bits, Work work) {
  const LevelTable levels = LoadLevels(codec::Codebook::gaussian, bits);
  switch (bits) {
    case 1: return work(std::type_identity<Quads1>(), levels);
    case 2: return work(std::type_identity<Quads2>(), levels);
    case 3: return work(std::type_identity<Quads3>(), levels);
    default: return work(std::type_identity<Quads4>(), levels);
  }
}

template <class T>
concept HandsOutQuads = std::is_same_v<T, QuadsMixed> || requires(const T& t) { t.template Quad<0>(); };

// Rows of a tile as floats.
template <class Quads>
struct FloatRows {
  Quads quads;
  HWY_ATTR FloatRows(const uint8_t* tile, size_t lane, LevelTable levels) : quads(tile, lane, levels) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    const VU quad = quads.template Quad<int(kRow / 4)>();
    constexpr int kByte = kRow % 4;
    const VU shifted = hn::ShiftRight<8 * kByte>(quad);
    const VU code = kByte == 3 ? shifted : hn::And(shifted, hn::Set(DU(), 0xffu));
    return hn::ConvertTo(DF(), hn::BitCast(DI(), code));
  }
};

template <>
struct FloatRows<QuadsMixed> {};

struct HalfRows {
  const hwy::float16_t* at;
  HWY_ATTR HalfRows(const uint8_t* tile, size_t lane, LevelTable) : at(reinterpret_cast<const hwy::float16_t*>(tile) + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), at + 16 * kRow));
  }
};

// A tile that was decoded to floats before, because many query rows will meet it.
struct UnpackedRows {
  static constexpr size_t kTileBytes = sizeof(float) * codec::kTileSide * codec::kTileSide;
  const float* at;
  HWY_ATTR UnpackedRows(const uint8_t* tile, size_t lane, LevelTable) : at(reinterpret_cast<const float*>(tile) + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return hn::LoadU(DF(), at + 16 * kRow);
  }
  template <class Rows>
  static HWY_ATTR void Unpack(const uint8_t* tile, LevelTable levels, uint8_t* unpacked) {
    float* out = reinterpret_cast<float*>(unpacked);
    for (size_t lane = 0; lane < codec::kTileSide; lane += Width()) {
      const Rows rows(tile, lane, levels);
      [&]<size_t... kRow>(std::index_sequence<kRow...>) HWY_ATTR {
        (hn::StoreU(rows.template Row<kRow>(), DF(), out + 16 * kRow + lane), ...);
      }(std::make_index_sequence<16>());
    }
  }
};

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
