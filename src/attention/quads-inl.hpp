// Decoding: what each format makes of a tile, four rows at a time as bytes, or row by row as floats. Included once per
// SIMD target. See codec/tile.hpp for where codes stand, codec/levels.hpp and codec/trellis.hpp for what they stand
// for, codec/formats.hpp for which there are.

#if defined(MIKV_QUADS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_QUADS_INL
#undef MIKV_QUADS_INL
#else
#define MIKV_QUADS_INL
#endif

#include <cstring>
#include <type_traits>
#include <utility>

#include "attention/vectors-inl.hpp"
#include "codec/block.hpp"
#include "codec/levels.hpp"
#include "codec/tile.hpp"
#include "codec/trellis.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// A table of 64 levels: in a register where one permutation takes them all.
#if HWY_TARGET == HWY_AVX3_DL
using LevelTable = VU;
HWY_INLINE HWY_ATTR LevelTable LoadLevels(const codec::Levels& levels) {
  return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(levels.data()));
}
#else
using LevelTable = const uint8_t*;
HWY_INLINE LevelTable LoadLevels(const codec::Levels& levels) { return levels.data(); }
#endif
// Of a class that decodes tiles, below; nothing if it looks nothing up, or takes a table for each tile.
template <class Reader>
HWY_INLINE HWY_ATTR LevelTable LevelsOf() {
  if constexpr (requires { typename Reader::Decoder; }) {
    return LevelsOf<typename Reader::Decoder>();
  } else if constexpr (requires { Reader::kLevelBits; }) {
    return LoadLevels(codec::kUniformLevels<Reader::kLevelBits>);
  } else {
    return LevelTable();
  }
}

// Levels of the windows in the low kWindow bits of each byte; the bits above them are anything.
template <uint32_t kWindow>
HWY_INLINE HWY_ATTR VU LookUp(LevelTable levels, VU windows) {
#if HWY_TARGET == HWY_AVX3_DL
  // Takes six bits of each byte, and the table repeats: no mask, so the table costs what masking would.
  return VU{_mm512_permutexvar_epi8(windows.raw, levels.raw)};
#elif HWY_TARGET == HWY_SCALAR
  uint32_t word = 0;
  for (uint32_t byte = 0; byte < 4; ++byte) word |= uint32_t{levels[windows.raw >> 8 * byte & 63]} << 8 * byte;
  return VU(word);
#elif HWY_TARGET == HWY_AVX2
  // 16 levels at once; where there are more, bits 4 and 5 choose among two or four lookups. A lookup takes the low four
  // bits of a byte, and gives 0 where its top bit is set; a choice takes the top bit.
  const __m256i index = _mm256_and_si256(windows.raw, _mm256_set1_epi8(0x0f));
  const auto of = [&](uint32_t table) HWY_ATTR {
    const __m128i* at = reinterpret_cast<const __m128i*>(levels) + table;
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(at)), index);
  };
  if constexpr (kWindow <= 4) return VU{of(0)};
  // In assembly because GCC 12 compares with 0 before it blends.
  const auto either = [](__m256i low, __m256i high, __m256i choice) HWY_ATTR {
    asm("vpblendvb %2, %1, %0, %0" : "+x"(low) : "x"(high), "x"(choice));
    return low;
  };
  const __m256i bit4 = _mm256_slli_epi16(windows.raw, 3), low = either(of(0), of(1), bit4);
  if constexpr (kWindow == 5) return VU{low};
  return VU{either(low, either(of(2), of(3), bit4), _mm256_slli_epi16(windows.raw, 2))};
#else
  // The same lookups, chosen by comparison.
  const hn::Repartition<uint8_t, DU> bytes;
  constexpr uint32_t kInTable = kWindow < 4 ? kWindow : 4;
  const auto window = hn::BitCast(bytes, windows),
             index = hn::And(window, hn::Set(bytes, uint8_t((1u << kInTable) - 1)));
  const auto of = [&](uint32_t table)
                      HWY_ATTR { return hn::TableLookupBytes(hn::LoadDup128(bytes, levels + 16 * table), index); };
  const auto either = [&](uint8_t bit, auto low, auto high) HWY_ATTR {
    return hn::IfThenElse(hn::Eq(hn::And(window, hn::Set(bytes, bit)), hn::Zero(bytes)), low, high);
  };
  if constexpr (kWindow <= 4) return hn::BitCast(DU(), of(0));
  if constexpr (kWindow == 5) return hn::BitCast(DU(), either(16, of(0), of(1)));
  return hn::BitCast(DU(), either(32, either(16, of(0), of(1)), either(16, of(2), of(3))));
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

// The bits of `chosen` that are set in kMask, the rest of `others`.
template <uint32_t kMask>
HWY_INLINE HWY_ATTR VU Select(VU chosen, VU others) {
  const VU mask = hn::Set(DU(), kMask);
#if HWY_TARGET == HWY_AVX3_DL
  return VU{_mm512_ternarylogic_epi32(mask.raw, chosen.raw, others.raw, 0xca)};
#else
  return hn::Or(hn::And(mask, chosen), hn::AndNot(mask, others));
#endif
}

// In each byte, the low kBits bits of `low` and the rest of `high`.
template <uint32_t kBits>
HWY_INLINE HWY_ATTR VU Join(VU low, VU high) {
  return Select<((1u << kBits) - 1) * 0x01010101u>(low, high);
}

// Moves bits up by kBy, or down by -kBy.
template <int kBy>
HWY_INLINE HWY_ATTR VU Shift(VU x) {
  if constexpr (kBy > 0) return hn::ShiftLeft<kBy>(x);
  if constexpr (kBy < 0) return hn::ShiftRight<-kBy>(x);
  return x;
}

// The words of lanes [lane, lane + width) of a tile, loaded once. Quad() hands out the codes of four rows from bit kTo
// of each byte on; bits below and above them are anything.
template <uint32_t kBits>
struct Codes {
  static constexpr codec::Plane kPlane = codec::plane_of(kBits);
  VU words[kPlane.n_words];

  HWY_ATTR Codes(const uint8_t* tile, size_t lane) { Load<0>(tile, lane); }

  template <uint32_t kWord>
  HWY_INLINE HWY_ATTR void Load(const uint8_t* tile, size_t lane) {
    if constexpr (kPlane.is_u16(kWord)) {
      words[kWord] = LoadNibbles(tile + 64 * kWord, lane);
    } else {
      words[kWord] = LoadWords(tile + 64 * kWord, lane);
    }
    if constexpr (kWord + 1 < kPlane.n_words) Load<kWord + 1>(tile, lane);
  }

  template <int kQuad, int kTo = 0>
  HWY_ATTR VU Quad() const {
    return QuadOf<kQuad, kTo>(words);
  }

  template <int kQuad, int kTo = 0>
  static HWY_ATTR VU QuadOf(const VU* words) {
    constexpr codec::Piece kFirst = kPlane.quads[kQuad][0], kSecond = kPlane.quads[kQuad][1];
    const VU first = Shift<kTo - int(kFirst.shift)>(words[kFirst.word]);
    if constexpr (kSecond.width == 0) return first;
    constexpr int kSecondTo = kTo + int(kSecond.from);
    return Join<uint32_t(kSecondTo)>(first, Shift<kSecondTo - int(kSecond.shift)>(words[kSecond.word]));
  }
};

template <uint32_t kBits>
  requires(codec::is_split(kBits))
struct Codes<kBits> {
  static constexpr uint32_t kLow = codec::low_plane_of(kBits);
  Codes<kLow> low;
  Codes<kBits - kLow> high;

  HWY_ATTR Codes(const uint8_t* tile, size_t lane) : low(tile, lane), high(tile + codec::tile_bytes(kLow), lane) {}

  template <int kQuad, int kTo = 0>
  HWY_ATTR VU Quad() const {
    return Join<kTo + kLow>(low.template Quad<kQuad, kTo>(), high.template Quad<kQuad, kTo + int(kLow)>());
  }
};

// Codes with the table of what they stand for.
template <uint32_t kBits>
struct CodesWithLevels : Codes<kBits> {
  LevelTable levels;
  HWY_ATTR CodesWithLevels(const uint8_t* tile, size_t lane, LevelTable table)
      : Codes<kBits>(tile, lane), levels(table) {}
};

// Each class from here on hands out quad after quad of levels of lanes [lane, lane + width) of a tile.

// ---------------------------------------------------------------- uniform levels

// Of any row of kFormats.
template <uint32_t kBits>
struct Uniform : CodesWithLevels<kBits> {
  static constexpr uint32_t kLevelBits = kBits;
  using CodesWithLevels<kBits>::CodesWithLevels;
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<kBits>(this->levels, Codes<kBits>::template Quad<kQuad>());
  }
};

// Codes that are their own levels. Also a tile of fewer bits that was unpacked before, because many query rows will
// meet it.
template <>
struct Uniform<8> {
  static constexpr size_t kTileBytes = codec::tile_bytes(8);
  const uint8_t* at;
  HWY_ATTR Uniform(const uint8_t* tile, size_t lane, LevelTable) : at(tile + 4 * lane) {}
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
using Quads8 = Uniform<8>;

// ---------------------------------------------------------------- trellis codes (codec/trellis.hpp)

// Keys: a window is a code and what stands above it in its lane's word, round and round.
template <uint32_t kBits>
struct KeyRing;

template <>
struct KeyRing<1> {
  LevelTable levels;
  VU word;  // bytes 0, 2, 1, 3 begin at bits 0, 4, 8, 12 of the lane's 16, eight bits each
  HWY_ATTR KeyRing(const uint8_t* tile, size_t lane, LevelTable table) : levels(table) {
    const VU n =
        hn::PromoteTo(DU(), hn::LoadU(hn::Rebind<uint16_t, DU>(), reinterpret_cast<const uint16_t*>(tile) + lane));
    word = hn::Or(n, hn::Or(hn::And(hn::ShiftLeft<12>(n), hn::Set(DU(), 0x0fff0000u)), hn::ShiftLeft<28>(n)));
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<5>(levels, hn::ShiftRight<kQuad>(word));
  }
};

template <>
struct KeyRing<2> : CodesWithLevels<2> {
  using CodesWithLevels<2>::CodesWithLevels;
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<6>(levels, hn::RotateRight<2 * kQuad>(words[0]));
  }
};

template <>
struct KeyRing<3> : CodesWithLevels<3> {
  using CodesWithLevels<3>::CodesWithLevels;
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    const VU word = words[0], nibbles = words[1];
    if constexpr (kQuad == 0) return LookUp<6>(levels, word);
    if constexpr (kQuad == 1) return LookUp<6>(levels, Join<5>(hn::ShiftRight<3>(word), hn::ShiftLeft<5>(nibbles)));
    if constexpr (kQuad == 2) return LookUp<6>(levels, QuadOf<2>(words));
    return LookUp<6>(levels, Join<3>(hn::ShiftRight<1>(nibbles), hn::RotateRight<5>(word)));
  }
};

template <>
struct KeyRing<4> : CodesWithLevels<4> {
  using CodesWithLevels<4>::CodesWithLevels;
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<6>(levels, hn::RotateRight<4 * (kQuad % 2)>(words[kQuad / 2]));
  }
};

// A code that is its whole window: of keys and values alike.
template <>
struct KeyRing<6> : Uniform<6> {
  using Uniform<6>::Uniform;
};

// The lanes that follow [lane, lane + width), 0 after 15. present: lanes [lane, lane + width); after: the lane after
// them, for all lanes.
HWY_INLINE HWY_ATTR VU NextLanes(VU present, VU after) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  (void)after;
  return VU{_mm512_alignr_epi32(present.raw, present.raw, 1)};
#elif HWY_TARGET == HWY_AVX2
  const __m256i rotated = _mm256_permutevar8x32_epi32(present.raw, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
  return VU{_mm256_blend_epi32(rotated, after.raw, 0x80)};
#elif HWY_TARGET == HWY_SCALAR
  (void)present;
  return after;
#else
  return hn::CombineShiftRightBytes<sizeof(uint32_t)>(DU(), after, present);
#endif
}
HWY_INLINE HWY_ATTR VU NextWords(const uint8_t* words, size_t lane, VU present) {
  uint32_t after;
  std::memcpy(&after, words + (lane + Width()) % codec::kTileSide * sizeof after, sizeof after);
  return NextLanes(present, hn::Set(DU(), after));
}
HWY_INLINE HWY_ATTR VU NextNibbles(const uint8_t* words, size_t lane, VU present) {
  uint16_t after;
  std::memcpy(&after, words + (lane + Width()) % codec::kTileSide * sizeof after, sizeof after);
  return NextLanes(present, hn::Set(DU(), uint32_t{after} | uint32_t{after} << 12));
}

// Values: a window is a code and the next lane's.
template <uint32_t kBits>
struct ValueRing;

template <>
struct ValueRing<1> {
  LevelTable levels;
  VU nibbles, next;
  HWY_ATTR ValueRing(const uint8_t* tile, size_t lane, LevelTable table)
      : levels(table), nibbles(LoadNibbles(tile, lane)) {
    next = hn::ShiftLeft<1>(NextNibbles(tile, lane, nibbles));
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<2>(levels, Join<1>(hn::ShiftRight<kQuad>(nibbles), hn::ShiftRight<kQuad>(next)));
  }
};

template <>
struct ValueRing<2> {
  LevelTable levels;
  VU even, odd;  // windows of quads 0 and 2, of 1 and 3, in the halves of a byte
  HWY_ATTR ValueRing(const uint8_t* tile, size_t lane, LevelTable table) : levels(table) {
    const VU word = LoadWords(tile, lane), next = NextWords(tile, lane, word);
    even = Select<0x33333333u>(word, hn::ShiftLeft<2>(next));
    odd = Select<0x33333333u>(hn::ShiftRight<2>(word), next);
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    return LookUp<4>(levels, hn::ShiftRight<4 * (kQuad / 2)>(kQuad % 2 ? odd : even));
  }
};

template <>
struct ValueRing<3> : CodesWithLevels<3> {
  VU next[2];
  HWY_ATTR ValueRing(const uint8_t* tile, size_t lane, LevelTable table) : CodesWithLevels<3>(tile, lane, table) {
    next[0] = NextWords(tile, lane, words[0]);
    next[1] = NextNibbles(tile + 64, lane, words[1]);
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    if constexpr (kQuad == 0) return LookUp<6>(levels, Join<3>(words[0], hn::ShiftLeft<3>(next[0])));
    if constexpr (kQuad == 1) return LookUp<6>(levels, Join<3>(hn::ShiftRight<3>(words[0]), next[0]));
    if constexpr (kQuad == 2) return LookUp<6>(levels, Join<3>(QuadOf<2>(words), hn::ShiftLeft<3>(QuadOf<2>(next))));
    return LookUp<6>(levels, Join<3>(hn::ShiftRight<1>(words[1]), hn::ShiftLeft<2>(next[1])));
  }
};

template <>
struct ValueRing<4> : CodesWithLevels<4> {
  VU next[2];
  HWY_ATTR ValueRing(const uint8_t* tile, size_t lane, LevelTable table) : CodesWithLevels<4>(tile, lane, table) {
    next[0] = NextWords(tile, lane, words[0]);
    next[1] = NextWords(tile + 64, lane, words[1]);
  }
  template <int kQuad>
  HWY_ATTR VU Quad() const {
    const VU word = words[kQuad / 2], after = next[kQuad / 2];
    if constexpr (kQuad % 2 == 0) return LookUp<6>(levels, Join<4>(word, hn::ShiftLeft<4>(after)));
    return LookUp<6>(levels, Join<4>(hn::ShiftRight<4>(word), after));
  }
};

template <>
struct ValueRing<6> : Uniform<6> {
  using Uniform<6>::Uniform;
};

// Stand for tiles that each have bits of their own.
struct MixedKeys {
  static constexpr codec::Ring kRing = codec::Ring::key;
  template <uint32_t kBits>
  using Quads = KeyRing<kBits>;
};
struct MixedValues {
  static constexpr codec::Ring kRing = codec::Ring::value;
  template <uint32_t kBits>
  using Quads = ValueRing<kBits>;
};
template <class T>
constexpr bool kIsMixed = std::is_same_v<T, MixedKeys> || std::is_same_v<T, MixedValues>;

// Calls work with the class that decodes a mixed tile and its table of levels.
template <class Mixed, class Work>
HWY_INLINE HWY_ATTR void WithQuads(uint32_t bits, Work work) {
  codec::visit_bits<codec::has_mixed_tiles>(bits, [&](auto n) HWY_ATTR {
    work(std::type_identity<typename Mixed::template Quads<n>>(), LoadLevels(codec::trellis_levels(Mixed::kRing, n)));
  });
}

template <class T>
concept HandsOutQuads = kIsMixed<T> || requires(const T& t) { t.template Quad<0>(); };

// Rows of a tile as floats.
template <class Quads>
struct FloatRows {
  using Decoder = Quads;
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

// Of tiles that each have bits of their own; the quads are chosen tile by tile.
template <class Mixed>
  requires kIsMixed<Mixed>
struct FloatRows<Mixed> {
  using OfTile = Mixed;
};
template <class T>
constexpr bool kIsMixedRows = requires { typename T::OfTile; };

struct HalfRows {
  const hwy::float16_t* at;
  HWY_ATTR HalfRows(const uint8_t* tile, size_t lane, LevelTable)
      : at(reinterpret_cast<const hwy::float16_t*>(tile) + lane) {}
  template <size_t kRow>
  HWY_ATTR VF Row() const {
    return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), at + 16 * kRow));
  }
};

// A tile that was decoded to floats before, because many query rows will meet it.
struct UnpackedRows {
  static constexpr size_t kTileBytes = sizeof(float) * codec::kTileSide * codec::kTileSide;
  const float* at;
  HWY_ATTR UnpackedRows(const uint8_t* tile, size_t lane, LevelTable)
      : at(reinterpret_cast<const float*>(tile) + lane) {}
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
  // The same of what codes stand for, alpha[row] * code + beta[row].
  template <class Rows>
  static HWY_ATTR void UnpackScaled(const uint8_t* tile, LevelTable levels, const float* alpha, const float* beta,
                                    uint8_t* unpacked) {
    float* out = reinterpret_cast<float*>(unpacked);
    for (size_t lane = 0; lane < codec::kTileSide; lane += Width()) {
      const Rows rows(tile, lane, levels);
      [&]<size_t... kRow>(std::index_sequence<kRow...>) HWY_ATTR {
        (hn::StoreU(hn::MulAdd(rows.template Row<kRow>(), hn::Set(DF(), alpha[kRow]), hn::Set(DF(), beta[kRow])), DF(),
                    out + 16 * kRow + lane),
         ...);
      }(std::make_index_sequence<16>());
    }
  }
};

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
