// Products of codes and factors of 16 bits where the CPU multiplies bytes by fours (AVX-512 VNNI, AVX-VNNI, dotprod).
// Included once per SIMD target.
//
// A factor is two signed bytes, 256 high + low: two dot products of byte pairs, four to a lane, instead of four
// products of floats, and no conversion of codes. Small factors are one byte, and one product.

#if defined(MIKV_BYTE_PRODUCTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_BYTE_PRODUCTS_INL
#undef MIKV_BYTE_PRODUCTS_INL
#else
#define MIKV_BYTE_PRODUCTS_INL
#endif

#include <cstring>

#include "attention/quads-inl.hpp"
#include "attention/vectors-inl.hpp"

#if MIKV_HAS_BYTE_PRODUCTS

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

constexpr float kLargestFactor = 32639.0f;  // 127 * 256 + 127
constexpr float kLargestByte = 127.0f;
constexpr bool kHasSmallFactors = true;
// From one block's factors to the next one's. Of n factors in a row the low bytes come first, the high bytes n after.
constexpr size_t kBlockFactorBytes = kLanes;

// What products see of a code is less by this. Where both sides are signed (dotprod) a byte from 0 to 255 becomes one
// from -128 to 127.
#if HWY_TARGET == HWY_NEON
constexpr float kCodeBias = 128.0f;
#else
constexpr float kCodeBias = 0.0f;
#endif

// Sums of independent chains: 5 cycles of latency on 2 ports want 10 of them in flight. Half of 16 registers are few.
constexpr uint32_t ChainsOf(uint32_t n_sums) {
  if (kMaxRows < 8) return n_sums >= 5 ? 1 : 2;
  return n_sums >= 9 ? 1 : n_sums >= 5 ? 2 : 4;
}

// Of kRows rows, of which the first kInWords have factors of two bytes, the others of one.
template <uint32_t kRows, uint32_t kInWords>
struct FactorSums {
  static constexpr uint32_t kChains = ChainsOf(kRows + kInWords);
  VI low[kChains][kRows], high[kChains][kInWords ? kInWords : 1];

  HWY_INLINE HWY_ATTR FactorSums() {
#pragma GCC unroll 4
    for (uint32_t chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) low[chain][r] = hn::Zero(DI());
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kInWords; ++r) high[chain][r] = hn::Zero(DI());
    }
  }

  // 256 high + low of row r. Joined as integers: the ports that convert and multiply floats are those of the products.
  HWY_INLINE HWY_ATTR VF Join(uint32_t r) const {
    const VI of_low = Total(low, r);
    if (r >= kInWords) return hn::ConvertTo(DF(), of_low);
    return hn::ConvertTo(DF(), hn::Add(hn::ShiftLeft<8>(Total(high, r)), of_low));
  }

 private:
  template <class Sums>
  static HWY_INLINE HWY_ATTR VI Total(const Sums& of, uint32_t r) {
    VI sum = of[0][r];
#pragma GCC unroll 4
    for (uint32_t chain = 1; chain < kChains; ++chain) sum = hn::Add(sum, of[chain][r]);
    return sum;
  }
};

// Four bytes of `codes` times four factors, added to each lane of `sum`.
HWY_INLINE HWY_ATTR VI DotBytes(VI sum, VU codes, const uint8_t* four_factors) {
#if HWY_TARGET == HWY_NEON
  const int32x4_t factors = vld1q_dup_s32(reinterpret_cast<const int32_t*>(four_factors));
  sum.raw = vdotq_s32(sum.raw, vreinterpretq_s8_u32(codes.raw), vreinterpretq_s8_s32(factors));
#else
  struct Four {
    uint8_t bytes[4];
  };
  const Four& four = *reinterpret_cast<const Four*>(four_factors);
#if HWY_TARGET == HWY_AVX3_DL
  // In assembly because GCC 12 makes a load, a broadcast and a copy of the sum out of the intrinsic: 10 to 15 %
  // of the time.
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "m"(four));
#else
  // In assembly because GCC 12 orders the sums of a tile anew and spills half of them.
  __m256i factors;
  asm("vpbroadcastd %3, %1\n\t"
      "%{vex%} vpdpbusd %1, %2, %0"
      : "+x"(sum.raw), "=&x"(factors)
      : "x"(codes.raw), "m"(four));
#endif
#endif
  return sum;
}

// kInRow: factors in a row.
template <class Quads, size_t kInRow, int kQuad, uint32_t kRows, uint32_t kInWords>
HWY_INLINE HWY_ATTR void QuadDot(const Quads& quads, const uint8_t* factors, size_t stride,
                                 FactorSums<kRows, kInWords>& sums) {
  const VU quad = quads.template Quad<kQuad>();
  const VU codes = kCodeBias ? hn::Xor(quad, hn::Set(DU(), 0x80808080u)) : quad;
  constexpr uint32_t kChain = kQuad % FactorSums<kRows, kInWords>::kChains;
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint8_t* four = factors + r * stride + 4 * kQuad;
    sums.low[kChain][r] = DotBytes(sums.low[kChain][r], codes, four);
    if (r < kInWords) sums.high[kChain][r] = DotBytes(sums.high[kChain][r], codes, four + kInRow);
  }
}

// Integers of at most +-32639 as low bytes and high bytes such that 256 high + low is the integer. A low byte of 128
// and more counts as negative; adding 128 makes the high byte take what that lost.
#if HWY_TARGET == HWY_AVX3_DL
// Of 4 x 16 integers.
HWY_INLINE HWY_ATTR void StoreParts(const VI* integers, uint8_t* low, uint8_t* high) {
  struct Order {
    uint8_t at[64];
  };
  // Where byte `part` of integer i stands after two packs, which interleave their operands by 4 integers.
  static constexpr auto order = [](uint8_t part) {
    Order result{};
    for (uint32_t i = 0; i < 64; ++i) {
      const uint32_t vector = i / 16, lane = i % 16;
      result.at[i] = uint8_t(64 * (vector / 2) + 16 * (lane / 4) + 8 * (vector % 2) + 2 * (lane % 4) + part);
    }
    return result;
  };
  alignas(64) static constexpr Order kLow = order(0), kHigh = order(1);
  const __m512i a = _mm512_packs_epi32(integers[0].raw, integers[1].raw);
  const __m512i b = _mm512_packs_epi32(integers[2].raw, integers[3].raw);
  const __m512i carry = _mm512_set1_epi16(128);
  const __m512i a_high = _mm512_add_epi16(a, carry), b_high = _mm512_add_epi16(b, carry);
  _mm512_storeu_si512(low, _mm512_permutex2var_epi8(a, _mm512_load_si512(kLow.at), b));
  _mm512_storeu_si512(high, _mm512_permutex2var_epi8(a_high, _mm512_load_si512(kHigh.at), b_high));
}

// Of 16 integers.
HWY_INLINE HWY_ATTR void StoreQueryFactors(const VI* integers, uint8_t* to) {
  const VI padded[4] = {integers[0], hn::Zero(DI()), hn::Zero(DI()), hn::Zero(DI())};
  uint8_t low[64], high[64];
  StoreParts(padded, low, high);
  std::memcpy(to, low, kLanes);
  std::memcpy(to + kLanes, high, kLanes);
}

// Of 64 integers, of a row of kStripTokens.
HWY_INLINE HWY_ATTR void StoreWeightFactors(const VI* integers, uint8_t* to) {
  StoreParts(integers, to, to + kStripTokens);
}
#else
// Of 16 integers.
HWY_INLINE HWY_ATTR void StoreParts(const VI* integers, uint8_t* low, uint8_t* high) {
#if HWY_TARGET == HWY_NEON
  const auto words = [integers](size_t i) HWY_ATTR {
    return vcombine_s16(vqmovn_s32(integers[i].raw), vqmovn_s32(integers[i + 1].raw));
  };
  const int16x8_t a = words(0), b = words(2), carry = vdupq_n_s16(128);
  vst1q_s8(reinterpret_cast<int8_t*>(low), vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
  vst1q_s8(reinterpret_cast<int8_t*>(high),
           vcombine_s8(vshrn_n_s16(vaddq_s16(a, carry), 8), vshrn_n_s16(vaddq_s16(b, carry), 8)));
#else
  // Both packs interleave the halves of their operands; together they leave the order as it was.
  const __m256i words = _mm256_packs_epi32(integers[0].raw, integers[1].raw);
  const __m256i in_order = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
  const auto store = [](__m256i bytes_as_words, uint8_t* to) HWY_ATTR {
    const __m256i bytes = _mm256_packs_epi16(bytes_as_words, bytes_as_words);
    const __m256i joined = _mm256_permute4x64_epi64(bytes, _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(joined));
  };
  store(_mm256_srai_epi16(_mm256_slli_epi16(in_order, 8), 8), low);
  store(_mm256_srai_epi16(_mm256_add_epi16(in_order, _mm256_set1_epi16(128)), 8), high);
#endif
}

HWY_INLINE HWY_ATTR void StoreQueryFactors(const VI* integers, uint8_t* to) { StoreParts(integers, to, to + kLanes); }

// Of 64 integers, of a row of kStripTokens.
HWY_INLINE HWY_ATTR void StoreWeightFactors(const VI* integers, uint8_t* to) {
  constexpr size_t kVectors = 16 / (sizeof(VI) / sizeof(int32_t));
#pragma GCC unroll 4
  for (size_t b = 0; b < 4; ++b) {
    StoreParts(integers + b * kVectors, to + b * kLanes, to + kStripTokens + b * kLanes);
  }
}
#endif

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // MIKV_HAS_BYTE_PRODUCTS
#endif  // toggle
