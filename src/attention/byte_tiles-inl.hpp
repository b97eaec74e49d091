// Attention over tiles in integers, where the CPU multiplies bytes by fours (AVX-512 VNNI). Included once per SIMD
// target.
//
// Codes are bytes as they are, four rows of a tile at once (codec/tile.hpp). What they are multiplied by, queries and
// attention weights, is rounded to 16 bits and split into two signed bytes, x = step * (256 high + low): two dot
// products of 64 byte pairs instead of four of 16 floats, and no conversion of codes. Sums of integers are exact, so
// the only error is that rounding: at most step/2 for each number, with step = the largest of them / 32639. Weights
// that are all small beside ones that their row has met before have one byte, which rounds them no more coarsely than
// two bytes round those.
//   logit = sum_g alpha_g step (q_int . codes_g) + beta_g step sum(q_int)
//   out_g = sum over steps of step sum_t (w_t alpha_tg)_int . (codes_tg - centre)
//           + sum_t w_t (beta_tg + centre alpha_tg)

#if defined(MIKV_BYTE_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_BYTE_TILES_INL
#undef MIKV_BYTE_TILES_INL
#else
#define MIKV_BYTE_TILES_INL
#endif

#include <cstring>
#include <type_traits>

#include "attention/quads-inl.hpp"
#include "attention/vectors-inl.hpp"

#if HWY_TARGET == HWY_AVX3_DL

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// ---------------------------------------------------------------- the dot product

constexpr float kLargestFactor = 32639.0f;  // 127 * 256 + 127
constexpr float kLargestByte = 127.0f;

// Of kRows rows, of which the first kWide have factors of two bytes, the others of one. 5 cycles of latency on 2 ports
// want 10 sums in flight: where there are few rows, each has several.
template <uint32_t kRows, uint32_t kWide>
struct PartSums {
  static constexpr uint32_t kEach = kRows + kWide, kChains = kEach >= 9 ? 1 : kEach >= 5 ? 2 : 4;
  VI low[kChains][kRows], high[kChains][kWide ? kWide : 1];

  HWY_INLINE HWY_ATTR void Clear() {
#pragma GCC unroll 4
    for (uint32_t chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) low[chain][r] = hn::Zero(DI());
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kWide; ++r) high[chain][r] = hn::Zero(DI());
    }
  }
};

// In assembly because GCC 12 makes a load, a broadcast and a copy of the sum out of the intrinsic: a quarter of the
// time.
HWY_INLINE HWY_ATTR VI DotBytes(VI sum, VU codes, const uint8_t* four_factors) {
  struct Four {
    uint8_t bytes[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum.raw)
      : "v"(codes.raw), "m"(*reinterpret_cast<const Four*>(four_factors)));
  return sum;
}

template <class Quads, size_t kHighAt, int kQuad, uint32_t kRows, uint32_t kWide>
HWY_INLINE HWY_ATTR void QuadDot(const Quads& quads, const uint8_t* parts, size_t stride,
                                 PartSums<kRows, kWide>& sums) {
  const VU codes = quads.template Quad<kQuad>();
  constexpr uint32_t kChain = kQuad % PartSums<kRows, kWide>::kChains;
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint8_t* factors = parts + r * stride + 4 * kQuad;
    sums.low[kChain][r] = DotBytes(sums.low[kChain][r], codes, factors);
    if (r < kWide) sums.high[kChain][r] = DotBytes(sums.high[kChain][r], codes, factors + kHighAt);
  }
}

// Adds to row r's sums factor i of row r * tile row i, over the tile's rows i. The factors' low bytes are at parts + r
// * stride, their high bytes kHighAt bytes after. bits: of the tile, where Quads does not say.
template <class Quads, size_t kHighAt, uint32_t kRows, uint32_t kWide>
HWY_INLINE HWY_ATTR void TileDotBytes(const uint8_t* tile, uint32_t bits, LevelTable levels, const uint8_t* parts,
                                      size_t stride, PartSums<kRows, kWide>& sums) {
  if constexpr (kIsMixed<Quads>) {
    WithQuads<Quads>(bits, [&](auto quads, LevelTable table) HWY_ATTR {
      TileDotBytes<typename decltype(quads)::type, kHighAt>(tile, bits, table, parts, stride, sums);
    });
  } else {
    const Quads quads(tile, 0, levels);
    QuadDot<Quads, kHighAt, 0>(quads, parts, stride, sums);
    QuadDot<Quads, kHighAt, 1>(quads, parts, stride, sums);
    QuadDot<Quads, kHighAt, 2>(quads, parts, stride, sums);
    QuadDot<Quads, kHighAt, 3>(quads, parts, stride, sums);
  }
}

// 256 high + low. Of up to 128 factors it fits 32 bits (128 * 128 * 255 * 257 < 2^31) and is joined as integers: the
// ports that convert and multiply floats are those of the byte products. Of more, high and low are exact as floats (255
// * 128 * 512 < 2^24).
constexpr uint32_t kMaxNarrowFactors = 128;
static_assert(kStepTokens <= kMaxNarrowFactors);

template <uint32_t kRows, uint32_t kWide>
HWY_INLINE HWY_ATTR VF JoinParts(const PartSums<kRows, kWide>& sums, uint32_t r, bool narrow = true) {
  const auto total = [&](const auto& of) HWY_ATTR {
    VI sum = of[0][r];
#pragma GCC unroll 4
    for (uint32_t chain = 1; chain < sums.kChains; ++chain) sum = hn::Add(sum, of[chain][r]);
    return sum;
  };
  const VI low = total(sums.low);
  if (r >= kWide) return hn::ConvertTo(DF(), low);
  const VI high = total(sums.high);
  if (narrow) return hn::ConvertTo(DF(), hn::Add(hn::ShiftLeft<8>(high), low));
  return hn::MulAdd(hn::ConvertTo(DF(), high), hn::Set(DF(), 256.0f), hn::ConvertTo(DF(), low));
}

// 4 x 16 integers of at most +-32639 as 64 low bytes and 64 high bytes such that 256 high + low is the integer.
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
  // A low byte of 128 and more counts as negative; adding 128 makes the high byte take what that lost.
  const __m512i carry = _mm512_set1_epi16(128);
  const __m512i a_high = _mm512_add_epi16(a, carry), b_high = _mm512_add_epi16(b, carry);
  _mm512_storeu_si512(low, _mm512_permutex2var_epi8(a, _mm512_load_si512(kLow.at), b));
  _mm512_storeu_si512(high, _mm512_permutex2var_epi8(a_high, _mm512_load_si512(kHigh.at), b_high));
}

// ---------------------------------------------------------------- logits

// Rounds a prepared query to integers of two bytes: for each pair 16 low bytes, then 16 high bytes.
constexpr size_t kQueryHighAt = kQueryPartBytes / 2;

HWY_ATTR inline void SplitQuery(const Geometry& geometry, uint32_t row, const Rows& rows) {
  const auto& pairs = geometry.pairs_k;
  const float* q = rows.q + row * pairs.size() * kLanes;
  uint8_t* parts = rows.q_parts + row * pairs.size() * kQueryPartBytes;
  for (size_t p = 0; p < pairs.size();) {
    const uint32_t group = pairs[p].group;
    size_t end = p;
    VF top = hn::Zero(DF());
    for (; end < pairs.size() && pairs[end].group == group; ++end) {
      top = hn::Max(top, hn::Abs(hn::LoadU(DF(), q + end * kLanes)));
    }
    const float largest = hn::GetLane(hn::MaxOfLanes(DF(), top));
    const float step = largest / kLargestFactor;
    const VF inverse = hn::Set(DF(), step >= std::numeric_limits<float>::min() ? 1.0f / step : 0.0f);
    VI sum = hn::Zero(DI());
    for (; p < end; ++p) {
      const VI integers[4] = {hn::NearestInt(hn::Mul(hn::LoadU(DF(), q + p * kLanes), inverse)), hn::Zero(DI()),
                              hn::Zero(DI()), hn::Zero(DI())};
      uint8_t low[64], high[64];
      StoreParts(integers, low, high);
      std::memcpy(parts + p * kQueryPartBytes, low, kLanes);
      std::memcpy(parts + p * kQueryPartBytes + kQueryHighAt, high, kLanes);
      sum = hn::Add(sum, integers[0]);
    }
    rows.q_steps[row * geometry.groups_k + group] = step;
    // Of the rounded query: a code of 0 stands for beta, and beta must meet what the codes met.
    rows.q_sums[row * geometry.groups_k + group] = step * float(hn::GetLane(hn::SumOfLanes(DI(), sum)));
  }
}

// As BlockLogits of floats.
template <HandsOutQuads Quads, uint32_t kRows>
HWY_ATTR void BlockLogits(const BlockSpan& span, const uint8_t* block, const Tiles& tiles, uint32_t b, const Rows& rows,
                          uint32_t first_row, float* logits, Ahead& ahead) {
  const auto& pairs = span.geometry->pairs_k;
  const size_t stride = pairs.size() * kQueryPartBytes;
  const LevelTable levels = LevelsOf<Quads>();
  const uint32_t groups = span.geometry->groups_k;
  const uint8_t* parts = rows.q_parts + first_row * stride;
  const float* steps = rows.q_steps + first_row * groups;
  const float* q_sums = rows.q_sums + first_row * groups;
  VF total[kRows];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) total[r] = hn::Set(DF(), rows.bias[first_row + r]);
  size_t p = 0;
  while (p < pairs.size()) {
    const uint32_t group = pairs[p].group;
    const size_t first = p;
    PartSums<kRows, kRows> sums;
    sums.Clear();
    for (; p < pairs.size() && pairs[p].group == group; ++p) {
      ahead.Fetch();
      const uint32_t tile = pairs[p].tile;
      TileDotBytes<Quads, kQueryHighAt>(tiles.Of(b, tile), tiles.Bits(tile), levels, parts + p * kQueryPartBytes,
                                        stride, sums);
    }
    const auto [alpha, beta] = LoadScales(*span.layout, block + span.layout->scales_k, group, 0);
    const bool narrow = (p - first) * kLanes <= kMaxNarrowFactors;
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) {
      const VF dot = hn::Mul(JoinParts(sums, r, narrow), hn::Set(DF(), steps[r * groups + group]));
      total[r] = hn::MulAdd(alpha, dot, hn::MulAdd(beta, hn::Set(DF(), q_sums[r * groups + group]), total[r]));
    }
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) hn::StoreU(total[r], DF(), logits + r * kStepTokens);
}

// ---------------------------------------------------------------- weighted values

// The rows of a step, those first whose weights want two bytes.
template <uint32_t kRows>
struct RowOrder {
  uint32_t of[kRows];
  uint32_t n_wide = 0;
  explicit RowOrder(const float* factors) {
    const auto wide = [factors](uint32_t r) { return factors[r] > kLargestByte / kLargestFactor; };
    uint32_t n = 0;
    for (uint32_t r = 0; r < kRows; ++r) {
      if (wide(r)) of[n++] = r;
    }
    n_wide = n;
    for (uint32_t r = 0; r < kRows; ++r) {
      if (!wide(r)) of[n++] = r;
    }
  }
};

// The weights of a step times the group's alpha as integers, row after row in order: kStepTokens low bytes, then as
// many high bytes. steps[i]: what those of the i-th row are to be multiplied by. Adds to zeros what a code of 0 stands
// for. Counted from the centre of the codes, because weights that are rounded away must not take the codes' mean with
// them: beside an attention sink most are, and after a rotation that mean is one channel.
constexpr size_t kRowWeightBytes = 2 * kStepTokens;
constexpr uint32_t kPartBlocks = 4;  // StoreParts takes 4 blocks at once
static_assert(kStepBlocks % kPartBlocks == 0 && kRowWeightBytes <= sizeof(float) * kStepTokens);

template <uint32_t kRows, uint32_t kWide>
HWY_ATTR void GroupWeightBytes(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, uint32_t group,
                               const RowOrder<kRows>& order, const float* w, const float* factors, float* zeros,
                               size_t zeros_stride, uint8_t* parts, float* steps) {
  const bool mixed = span.layout->mixed();  // symmetric about the centre: nothing is left in the middle
  const float centre = mixed ? codec::kTrellisCentre : 0.5f * float((1u << span.layout->bits) - 1);
  VF alphas[kStepBlocks], middles[kStepBlocks], top = hn::Zero(DF());
  for (uint32_t b = 0; b < n_blocks; ++b) {
    const uint8_t* block = blocks + b * span.layout->bytes;
    const Scales scales = LoadScales(*span.layout, block + span.layout->scales_v, group, 0);
    alphas[b] = scales.alpha;
    middles[b] = hn::MulAdd(scales.alpha, hn::Set(DF(), centre), scales.beta);
    top = hn::Max(top, alphas[b]);
  }
  const uint32_t n_padded = (n_blocks + kPartBlocks - 1) / kPartBlocks * kPartBlocks;
  for (uint32_t b = n_blocks; b < n_padded; ++b) alphas[b] = middles[b] = hn::Zero(DF());
  const float largest_alpha = hn::GetLane(hn::MaxOfLanes(DF(), top));
  const float inverse = largest_alpha > 0.0f ? 1.0f / largest_alpha : 0.0f;
  for (uint32_t b = 0; b < n_blocks; ++b) alphas[b] = hn::Mul(alphas[b], hn::Set(DF(), inverse));
  for (uint32_t i = 0; i < kRows; ++i) {
    const uint32_t r = order.of[i];
    const float largest = i < kWide ? kLargestFactor : kLargestByte;
    steps[i] = factors[r] * largest_alpha / largest;
    VF zero = hn::Zero(DF());
    VI total = hn::Zero(DI());
    for (uint32_t first = 0; first < n_padded; first += kPartBlocks) {
      VI integers[kPartBlocks];
#pragma GCC unroll 4
      for (uint32_t j = 0; j < kPartBlocks; ++j) {
        const VF weight = hn::LoadU(DF(), w + r * kStepTokens + (first + j) * kLanes);
        if (!mixed) zero = hn::MulAdd(weight, middles[first + j], zero);
        integers[j] = hn::NearestInt(hn::Mul(hn::Mul(weight, alphas[first + j]), hn::Set(DF(), largest)));
        total = hn::Add(total, integers[j]);
      }
      uint8_t* row = parts + i * kRowWeightBytes + first * kLanes;
      StoreParts(integers, row, row + kStepTokens);
    }
    float* sum = zeros + r * zeros_stride;
    const VF below = hn::MulAdd(hn::ConvertTo(DF(), total), hn::Set(DF(), -centre * steps[i]), hn::LoadU(DF(), sum));
    hn::StoreU(mixed ? below : hn::MulAdd(zero, hn::Set(DF(), factors[r]), below), DF(), sum);
  }
}

template <HandsOutQuads Quads, uint32_t kRows, uint32_t kWide>
HWY_ATTR void StepValuesInOrder(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, const Tiles& tiles,
                                const State& state, uint32_t first_row, const Scratch& scratch, Ahead& ahead,
                                const RowOrder<kRows>& order) {
  const size_t acc_stride = state.acc_stride, zeros_stride = state.zeros_stride;
  const LevelTable levels = LevelsOf<Quads>();
  uint8_t* parts = reinterpret_cast<uint8_t*>(scratch.weights);
  float steps[kRows];
  uint32_t group = ~0u;
  for (const TilePair& pair : span.geometry->pairs_v) {
    if (pair.group != group) {
      group = pair.group;
      GroupWeightBytes<kRows, kWide>(
          span, blocks, n_blocks, group, order, scratch.logits + first_row * kStepTokens, scratch.factors + first_row,
          state.zeros + first_row * zeros_stride + group * kLanes, zeros_stride, parts, steps);
    }
    PartSums<kRows, kWide> sums;
    sums.Clear();
    for (uint32_t b = 0; b < n_blocks; ++b) {
      ahead.Fetch();
      TileDotBytes<Quads, kStepTokens>(tiles.Of(b, pair.tile), tiles.Bits(pair.tile), levels, parts + b * kLanes,
                                       kRowWeightBytes, sums);
    }
    const auto inside = LanesInside(pair, 0);
#pragma GCC unroll 8
    for (uint32_t i = 0; i < kRows; ++i) {
      float* acc = state.acc + (first_row + order.of[i]) * acc_stride + pair.tile * kLanes;
      const VF dot = hn::IfThenElseZero(inside, JoinParts(sums, i));
      hn::StoreU(hn::MulAdd(dot, hn::Set(DF(), steps[i]), hn::LoadU(DF(), acc)), DF(), acc);
    }
  }
}

// As StepValues of floats.
template <HandsOutQuads Quads, uint32_t kRows>
HWY_ATTR void StepValues(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, const Tiles& tiles,
                         const State& state, uint32_t first_row, const Scratch& scratch, Ahead& ahead) {
  const RowOrder<kRows> order(scratch.factors + first_row);
  // Two bytes for a few rows more than want them: each number of rows would be a kernel of its own.
  constexpr uint32_t kHalf = (kRows + 1) / 2;
  const auto run = [&](auto wide) HWY_ATTR {
    StepValuesInOrder<Quads, kRows, decltype(wide)::value>(span, blocks, n_blocks, tiles, state, first_row, scratch,
                                                           ahead, order);
  };
  if (order.n_wide == 0) return run(std::integral_constant<uint32_t, 0>());
  if (order.n_wide <= kHalf) return run(std::integral_constant<uint32_t, kHalf>());
  run(std::integral_constant<uint32_t, kRows>());
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_AVX3_DL
#endif  // toggle
