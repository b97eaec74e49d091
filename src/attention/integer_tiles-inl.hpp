// Attention over tiles in integers, where the CPU has products that beat those of floats: of bytes (AVX-512 VNNI,
// AVX-VNNI, dotprod; byte_products-inl.hpp) or of 16 bits (AVX2, word_products-inl.hpp). Included once per SIMD target.
//
// Codes are bytes as they are, four rows of a tile at once (codec/tile.hpp). What they are multiplied by, queries and
// attention weights, is rounded to 16 bits: "factors". Sums of integers are exact, so the only error is that rounding:
// at most scale/2 for each number, with scale = the largest of them / 32639 (of weights: the largest weight times the
// largest alpha).
//   logit = sum_g alpha_g scale (q_int . codes_g) + beta_g scale sum(q_int)
//   out_g = sum over strips of scale sum_t (w_t alpha_tg)_int . (codes_tg - centre)
//           + sum_t w_t (beta_tg + centre alpha_tg)

#if defined(MIKV_INTEGER_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_INTEGER_TILES_INL
#undef MIKV_INTEGER_TILES_INL
#else
#define MIKV_INTEGER_TILES_INL
#endif

#include <type_traits>

#include "attention/byte_products-inl.hpp"
#include "attention/quads-inl.hpp"
#include "attention/vectors-inl.hpp"
#include "attention/word_products-inl.hpp"

#if MIKV_HAS_INTEGER_TILES

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// ---------------------------------------------------------------- the dot product

// sums[r] += sum over i of factor[r][i] * tile row i, in lanes [lane, lane + width). The factors of row r are at
// factors + r * stride, in a row of kInRow. bits: of the tile, where Quads does not say.
template <class Quads, size_t kInRow, uint32_t kRows, uint32_t kInWords>
HWY_INLINE HWY_ATTR void TileDotFactors(const uint8_t* tile, uint32_t bits, size_t lane, LevelTable levels,
                                        const uint8_t* factors, size_t stride, FactorSums<kRows, kInWords>& sums) {
  if constexpr (kIsMixed<Quads>) {
    WithQuads<Quads>(bits, [&](auto quads, LevelTable table) HWY_ATTR {
      TileDotFactors<typename decltype(quads)::type, kInRow>(tile, bits, lane, table, factors, stride, sums);
    });
  } else {
    const Quads quads(tile, lane, levels);
    QuadDot<Quads, kInRow, 0>(quads, factors, stride, sums);
    QuadDot<Quads, kInRow, 1>(quads, factors, stride, sums);
    QuadDot<Quads, kInRow, 2>(quads, factors, stride, sums);
    QuadDot<Quads, kInRow, 3>(quads, factors, stride, sums);
  }
}

// ---------------------------------------------------------------- logits

// Factors whose products with codes are summed in 32 bits: 128 * 255 * 32639 < 2^31.
constexpr uint32_t kMaxFactors = 128;
static_assert(kStripTokens <= kMaxFactors);

constexpr size_t kLaneVectors = kLanes / (sizeof(VF) / sizeof(float));

// Rounds a prepared query to factors, pair by pair.
HWY_ATTR inline void RoundQuery(const Geometry& geometry, uint32_t row, const Rows& rows) {
  const auto& pairs = geometry.pairs_k;
  const float* q = rows.q + row * pairs.size() * kLanes;
  uint8_t* parts = rows.q_integers + row * pairs.size() * kQueryIntegerBytes;
  for (size_t p = 0; p < pairs.size();) {
    const uint32_t group = pairs[p].group;
    size_t end = p;
    while (end < pairs.size() && pairs[end].group == group) ++end;
    VF top = hn::Zero(DF());
    for (size_t i = p * kLanes; i < end * kLanes; i += Width()) top = hn::Max(top, hn::Abs(hn::LoadU(DF(), q + i)));
    const float largest = hn::GetLane(hn::MaxOfLanes(DF(), top));
    const float scale = largest / kLargestFactor;
    const VF inverse = hn::Set(DF(), scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f);
    VI sum = hn::Zero(DI());
    for (; p < end; ++p) {
      VI integers[kLaneVectors];
      for (size_t i = 0; i < kLaneVectors; ++i) {
        integers[i] = hn::NearestInt(hn::Mul(hn::LoadU(DF(), q + p * kLanes + i * Width()), inverse));
        sum = hn::Add(sum, integers[i]);
      }
      StoreQueryFactors(integers, parts + p * kQueryIntegerBytes);
    }
    rows.q_scales[row * geometry.groups_k + group] = scale;
    // Of the rounded query: a code of 0 stands for beta, and beta must meet what the codes met.
    rows.q_sums[row * geometry.groups_k + group] = scale * float(hn::GetLane(hn::SumOfLanes(DI(), sum)));
  }
}

// As BlockLogits of floats.
template <HandsOutQuads Quads, uint32_t kRows>
HWY_ATTR void BlockLogits(const BlockSpan& span, const uint8_t* block, const Tiles& tiles, uint32_t b, const Rows& rows,
                          uint32_t first_row, float* logits, Ahead& ahead) {
  const auto& pairs = span.geometry->pairs_k;
  const size_t stride = pairs.size() * kQueryIntegerBytes;
  const LevelTable levels = LevelsOf<Quads>();
  const uint32_t groups = span.geometry->groups_k;
  const uint8_t* parts = rows.q_integers + first_row * stride;
  const float* factor_scales = rows.q_scales + first_row * groups;
  const float* q_sums = rows.q_sums + first_row * groups;
  for (size_t lane = 0; lane < kLanes; lane += Width()) {
    VF total[kRows];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) total[r] = hn::Set(DF(), rows.bias[first_row + r]);
    size_t p = 0;
    while (p < pairs.size()) {
      const uint32_t group = pairs[p].group;
      const size_t first = p;
      FactorSums<kRows, kRows> sums;
      for (; p < pairs.size() && pairs[p].group == group && p - first < kMaxFactors / kLanes; ++p) {
        ahead.Fetch();
        const uint32_t tile = pairs[p].tile;
        TileDotFactors<Quads, kLanes>(tiles.Of(b, tile), tiles.Bits(tile), lane, levels, parts + p * kQueryIntegerBytes,
                                      stride, sums);
      }
      const bool begins = first == 0 || pairs[first - 1].group != group;  // zeros count once
      const auto [alpha, beta] = LoadScales(*span.layout, block + span.layout->scales_k, group, lane);
      const VF zero = kCodeBias ? hn::MulAdd(alpha, hn::Set(DF(), kCodeBias), beta) : beta;
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) {
        const VF dot = hn::Mul(sums.Join(r), hn::Set(DF(), factor_scales[r * groups + group]));
        const float q_sum = begins ? q_sums[r * groups + group] : 0.0f;
        total[r] = hn::MulAdd(alpha, dot, hn::MulAdd(zero, hn::Set(DF(), q_sum), total[r]));
      }
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) hn::StoreU(total[r], DF(), logits + r * kStripTokens + lane);
  }
}

// ---------------------------------------------------------------- weighted values

// The rows of a strip, those first whose weights want all 16 bits. Weights that are all small beside ones that their
// row has met before have one byte, where that saves a product: it rounds them no more coarsely than 16 bits round
// those.
template <uint32_t kRows>
struct RowOrder {
  uint32_t of[kRows];
  uint32_t n_in_words = 0;
  explicit RowOrder(const float* factors) {
    const auto in_words = [factors](uint32_t r) {
      return !kHasSmallFactors || factors[r] > kLargestByte / kLargestFactor;
    };
    uint32_t n = 0;
    for (uint32_t r = 0; r < kRows; ++r) {
      if (in_words(r)) of[n++] = r;
    }
    n_in_words = n;
    for (uint32_t r = 0; r < kRows; ++r) {
      if (!in_words(r)) of[n++] = r;
    }
  }
};

// The weights of a strip times the group's alpha as factors, row after row in order. factor_scales[i]: what those of
// the i-th row are to be multiplied by. Adds to zeros what a code of 0 stands for. Counted from the centre of the
// codes, because weights that are rounded away must not take the codes' mean with them: beside an attention sink most
// are, and after a rotation that mean is one channel.
constexpr size_t kRowWeightBytes = 2 * kStripTokens;
constexpr uint32_t kPartBlocks = 4;  // StoreWeightFactors takes 4 blocks at once
static_assert(kStripBlocks % kPartBlocks == 0 && kRowWeightBytes <= sizeof(float) * kStripTokens);

template <uint32_t kRows, uint32_t kInWords>
HWY_ATTR void GroupWeightFactors(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, uint32_t group,
                                 const RowOrder<kRows>& order, const float* w, const float* factors, float* zeros,
                                 size_t zeros_stride, uint8_t* parts, float* factor_scales) {
  const bool mixed = span.layout->mixed();  // symmetric about the centre: nothing is left in the middle
  const float centre = mixed ? codec::kTrellisCentre : 0.5f * float((1u << span.layout->bits) - 1);
  constexpr uint32_t kVectors = kPartBlocks * kLaneVectors;
  VF alphas[kStripBlocks * kLaneVectors], middles[kStripBlocks * kLaneVectors], top = hn::Zero(DF());
  for (uint32_t i = 0; i < n_blocks * kLaneVectors; ++i) {
    const uint8_t* block = blocks + i / kLaneVectors * span.layout->bytes;
    const Scales scales = LoadScales(*span.layout, block + span.layout->scales_v, group, i % kLaneVectors * Width());
    alphas[i] = scales.alpha;
    middles[i] = hn::MulAdd(scales.alpha, hn::Set(DF(), centre), scales.beta);
    top = hn::Max(top, alphas[i]);
  }
  const uint32_t n_padded = (n_blocks + kPartBlocks - 1) / kPartBlocks * kVectors;
  for (uint32_t i = n_blocks * kLaneVectors; i < n_padded; ++i) alphas[i] = middles[i] = hn::Zero(DF());
  const float largest_alpha = hn::GetLane(hn::MaxOfLanes(DF(), top));
  const float inverse = largest_alpha > 0.0f ? 1.0f / largest_alpha : 0.0f;
  for (uint32_t i = 0; i < n_blocks * kLaneVectors; ++i) alphas[i] = hn::Mul(alphas[i], hn::Set(DF(), inverse));
  for (uint32_t i = 0; i < kRows; ++i) {
    const uint32_t r = order.of[i];
    const float largest = i < kInWords ? kLargestFactor : kLargestByte;
    factor_scales[i] = factors[r] * largest_alpha / largest;
    VF zero = hn::Zero(DF());
    VI total = hn::Zero(DI());
    for (uint32_t first = 0; first < n_padded; first += kVectors) {
      VI integers[kVectors];
#pragma GCC unroll 8
      for (uint32_t j = 0; j < kVectors; ++j) {
        const VF weight = hn::LoadU(DF(), w + r * kStripTokens + (first + j) * Width());
        if (!mixed) zero = hn::MulAdd(weight, middles[first + j], zero);
        integers[j] = hn::NearestInt(hn::Mul(hn::Mul(weight, alphas[first + j]), hn::Set(DF(), largest)));
        total = hn::Add(total, integers[j]);
      }
      StoreWeightFactors(integers, parts + i * kRowWeightBytes + first / kLaneVectors * kBlockFactorBytes);
    }
    float* sum = zeros + r * zeros_stride;  // partial sums: any lanes will do
    const VF below = hn::MulAdd(hn::ConvertTo(DF(), total), hn::Set(DF(), (kCodeBias - centre) * factor_scales[i]),
                                hn::LoadU(DF(), sum));
    hn::StoreU(mixed ? below : hn::MulAdd(zero, hn::Set(DF(), factors[r]), below), DF(), sum);
  }
}

template <HandsOutQuads Quads, uint32_t kRows, uint32_t kInWords>
HWY_ATTR void StripValuesInOrder(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, const Tiles& tiles,
                                 const State& state, uint32_t first_row, const Scratch& scratch, Ahead& ahead,
                                 const RowOrder<kRows>& order) {
  const size_t acc_stride = state.acc_stride, zeros_stride = state.zeros_stride;
  const LevelTable levels = LevelsOf<Quads>();
  uint8_t* parts = reinterpret_cast<uint8_t*>(scratch.weights);
  float factor_scales[kRows];
  uint32_t group = ~0u;
  for (const TilePair& pair : span.geometry->pairs_v) {
    if (pair.group != group) {
      group = pair.group;
      GroupWeightFactors<kRows, kInWords>(
          span, blocks, n_blocks, group, order, scratch.logits + first_row * kStripTokens, scratch.factors + first_row,
          state.zeros + first_row * zeros_stride + group * kLanes, zeros_stride, parts, factor_scales);
    }
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      FactorSums<kRows, kInWords> sums;
      for (uint32_t b = 0; b < n_blocks; ++b) {
        ahead.Fetch();
        TileDotFactors<Quads, kStripTokens>(tiles.Of(b, pair.tile), tiles.Bits(pair.tile), lane, levels,
                                            parts + b * kBlockFactorBytes, kRowWeightBytes, sums);
      }
      const auto inside = LanesInside(pair, lane);
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kRows; ++i) {
        float* acc = state.acc + (first_row + order.of[i]) * acc_stride + pair.tile * kLanes + lane;
        const VF dot = hn::IfThenElseZero(inside, sums.Join(i));
        hn::StoreU(hn::MulAdd(dot, hn::Set(DF(), factor_scales[i]), hn::LoadU(DF(), acc)), DF(), acc);
      }
    }
  }
}

// As StripValues of floats.
template <HandsOutQuads Quads, uint32_t kRows>
HWY_ATTR void StripValues(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, const Tiles& tiles,
                          const State& state, uint32_t first_row, const Scratch& scratch, Ahead& ahead) {
  const RowOrder<kRows> order(scratch.factors + first_row);
  // 16 bits for a few rows more than want them: each number of rows would be a kernel of its own.
  constexpr uint32_t kHalf = (kRows + 1) / 2;
  const auto run = [&](auto n_in_words) HWY_ATTR {
    StripValuesInOrder<Quads, kRows, decltype(n_in_words)::value>(span, blocks, n_blocks, tiles, state, first_row,
                                                                  scratch, ahead, order);
  };
  if constexpr (kHasSmallFactors) {
    if (order.n_in_words == 0) return run(std::integral_constant<uint32_t, 0>());
    if (order.n_in_words <= kHalf) return run(std::integral_constant<uint32_t, kHalf>());
  }
  run(std::integral_constant<uint32_t, kRows>());
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // MIKV_HAS_INTEGER_TILES
#endif  // toggle
