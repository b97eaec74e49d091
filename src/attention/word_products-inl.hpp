// Products of codes and factors of 16 bits where the CPU multiplies words in pairs (AVX2 without AVX-VNNI). Included
// once per SIMD target.
//
// Four rows of codes are two vectors of words, rows 0 and 2, and 1 and 3, of each lane side by side: two products and
// two sums take the place of four products of floats and their conversions. Pairs of bytes (vpmaddubsw) would need
// factors of 7 bits, so as not to saturate, and eight instructions for two of them.

#if defined(MIKV_WORD_PRODUCTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_WORD_PRODUCTS_INL
#undef MIKV_WORD_PRODUCTS_INL
#else
#define MIKV_WORD_PRODUCTS_INL
#endif

#include <cstring>

#include "attention/quads-inl.hpp"
#include "attention/vectors-inl.hpp"

#if HWY_TARGET == HWY_AVX2 && !MIKV_HAS_BYTE_PRODUCTS

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

constexpr float kLargestFactor = 32639.0f;  // that of byte_products-inl.hpp: one bound for both
constexpr bool kHasSmallFactors = false;
constexpr float kCodeBias = 0.0f;
constexpr float kLargestByte = 127.0f;  // of small factors: not used
// From one block's factors to the next one's. Those of four rows stand in the order 0, 2, 1, 3.
constexpr size_t kBlockFactorBytes = sizeof(int16_t) * kLanes;

template <uint32_t kRows, uint32_t kInWords>
struct FactorSums {
  static_assert(kInWords == kRows);
  VI of[kRows];

  HWY_INLINE HWY_ATTR FactorSums() {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) of[r] = hn::Zero(DI());
  }
  HWY_INLINE HWY_ATTR VF Join(uint32_t r) const { return hn::ConvertTo(DF(), of[r]); }
};

// Adds the products of two rows of codes, side by side, and their factors. In assembly because GCC 12 orders the sums
// of a tile anew and spills half of the products.
HWY_INLINE HWY_ATTR void AddProducts(VI& sum, __m256i codes, const uint8_t* two_factors) {
  struct Two {
    uint8_t bytes[4];
  };
  __m256i products;
  asm("vpbroadcastd %3, %1\n\t"
      "vpmaddwd %1, %2, %1\n\t"
      "vpaddd %1, %0, %0"
      : "+x"(sum.raw), "=&x"(products)
      : "x"(codes), "m"(*reinterpret_cast<const Two*>(two_factors)));
}

// kInRow: the words of a factor stand together, wherever its row ends.
template <class Quads, size_t kInRow, int kQuad, uint32_t kRows, uint32_t kInWords>
HWY_INLINE HWY_ATTR void QuadDot(const Quads& quads, const uint8_t* factors, size_t stride,
                                 FactorSums<kRows, kInWords>& sums) {
  const __m256i codes = quads.template Quad<kQuad>().raw;
  const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(codes, 8);
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint8_t* four = factors + r * stride + 8 * kQuad;
    AddProducts(sums.of[r], even, four);
    AddProducts(sums.of[r], odd, four + 4);
  }
}

// 16 integers of at most +-32639 as words.
HWY_INLINE HWY_ATTR void StoreQueryFactors(const VI* integers, uint8_t* to) {
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(integers[0].raw, integers[1].raw), _MM_SHUFFLE(3, 1, 2, 0));
  constexpr int kOrder = _MM_SHUFFLE(3, 1, 2, 0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, kOrder), kOrder));
}

// Of 64 integers.
HWY_INLINE HWY_ATTR void StoreWeightFactors(const VI* integers, uint8_t* to) {
#pragma GCC unroll 4
  for (uint32_t b = 0; b < 4; ++b) StoreQueryFactors(integers + 2 * b, to + b * kBlockFactorBytes);
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_AVX2 without byte products
#endif  // toggle
