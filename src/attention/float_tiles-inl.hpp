// Attention over tiles in single precision: the arithmetic of targets without integer products, and of 16-bit tiles on
// all. Included once per SIMD target.
//
// Scales never touch the codes: a key's alpha multiplies its finished dot product, a value's alpha its attention
// weight.
//   logit = sum_g alpha_g (q_g . codes_g) + beta_g sum(q_g)
//   out_g = sum_t (w_t alpha_tg) codes_tg + sum_t w_t beta_tg
// But for keys by channel, whose tiles are decoded to what their codes stand for (kernels.cpp).

#if defined(MIKV_FLOAT_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_FLOAT_TILES_INL
#undef MIKV_FLOAT_TILES_INL
#else
#define MIKV_FLOAT_TILES_INL
#endif

#include "attention/quads-inl.hpp"
#include "attention/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// ---------------------------------------------------------------- the dot product

// Independent chains per query row: 4 cycles of FMA latency on 2 ports want 8 accumulators in flight. Half of 16
// registers are needed for decoding.
template <uint32_t kRows>
constexpr uint32_t Chains() {
  if constexpr (kMaxRows < 8) return kRows >= 4 ? 1 : kRows >= 2 ? 2 : 4;
  return kRows >= 7 ? 1 : kRows >= 3 ? 2 : 4;
}

template <class Rowwise, uint32_t kRows, size_t kRow>
HWY_INLINE HWY_ATTR void TileTable(const Rowwise& rows, const float* const* coefficients, VF* sums) {
  const VF codes = rows.template Row<kRow>();
  constexpr uint32_t kChain = kRow % Chains<kRows>();
#pragma GCC unroll 8
  for (uint32_t r = 0; r < kRows; ++r) {
    VF& sum = sums[kChain * kRows + r];
    sum = hn::MulAdd(hn::Set(DF(), coefficients[r][kRow]), codes, sum);
  }
}

// Rows kRow..15. Recursion, not a fold over a lambda: a call that is not inlined would force the sums into memory.
template <class Rowwise, uint32_t kRows, size_t kRow>
HWY_INLINE HWY_ATTR void TileRowsFrom(const Rowwise& rows, const float* const* coefficients, VF* sums) {
  TileTable<Rowwise, kRows, kRow>(rows, coefficients, sums);
  if constexpr (kRow + 1 < codec::kTileSide) TileRowsFrom<Rowwise, kRows, kRow + 1>(rows, coefficients, sums);
}

// sums[chain][r] += sum over tile rows i of coefficients[r * stride + i] * row i, in lanes [lane, lane + width). bits:
// of the tile, where Rowwise does not say.
template <class Rowwise, uint32_t kRows>
HWY_INLINE HWY_ATTR void TileDot(const uint8_t* tile, uint32_t bits, size_t lane, LevelTable levels,
                                 const float* coefficients, size_t stride, VF* sums) {
  if constexpr (kIsMixedRows<Rowwise>) {
    WithQuads<typename Rowwise::OfTile>(bits, [&](auto quads, LevelTable table) HWY_ATTR {
      TileDot<FloatRows<typename decltype(quads)::type>, kRows>(tile, bits, lane, table, coefficients, stride, sums);
    });
  } else {
    const Rowwise rows(tile, lane, levels);
    // Opaque, or GCC computes the address of each of the 16 * kRows factors before the loop over tiles, keeps them on
    // the stack, and loads one for each product.
    const float* row[kRows];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) {
      row[r] = coefficients + r * stride;
      asm("" : "+r"(row[r]));
    }
    TileRowsFrom<Rowwise, kRows, 0>(rows, row, sums);
  }
}

template <uint32_t kRows>
HWY_INLINE HWY_ATTR VF SumChains(const VF* sums, uint32_t r) {
  VF total = sums[r];
  for (uint32_t chain = 1; chain < Chains<kRows>(); ++chain) total = hn::Add(total, sums[chain * kRows + r]);
  return total;
}

// ---------------------------------------------------------------- logits

// Raw logits (no mask) of one block for kRows rows, to logits[r * kStripTokens + lane]; or added to them, without bias.
template <class Rowwise, uint32_t kRows>
HWY_ATTR void BlockLogits(const BlockSpan& span, const uint8_t* block, const Tiles& tiles, uint32_t b, const Rows& rows,
                          uint32_t first_row, bool adds, float* logits, Ahead& ahead) {
  const auto& pairs = span.geometry->pairs_k;
  const size_t q_stride = pairs.size() * kLanes;
  const float* q = rows.q + first_row * q_stride;
  const uint32_t groups = span.geometry->groups_k;
  const bool scaled = span.layout->groups_k > 0 && !span.layout->keys_by_channel;
  const LevelTable levels = LevelsOf<Rowwise>();
  constexpr uint32_t kSums = kRows * Chains<kRows>();
  for (size_t lane = 0; lane < kLanes; lane += Width()) {
    VF total[kRows];
    for (uint32_t r = 0; r < kRows; ++r) {
      total[r] = adds ? hn::LoadU(DF(), logits + r * kStripTokens + lane) : hn::Set(DF(), rows.bias[first_row + r]);
    }
    size_t p = 0;
    while (p < pairs.size()) {
      const uint32_t group = pairs[p].group;
      VF sums[kSums];
      for (uint32_t i = 0; i < kSums; ++i) sums[i] = hn::Zero(DF());
      for (; p < pairs.size() && (!scaled || pairs[p].group == group); ++p) {
        ahead.Fetch();
        const uint32_t tile = pairs[p].tile;
        TileDot<Rowwise, kRows>(tiles.Of(b, tile), tiles.Bits(tile), lane, levels, q + p * kLanes, q_stride, sums);
      }
      if (scaled) {
        const auto [alpha, beta] = LoadScales(*span.layout, block + span.layout->scales_k, group, lane);
        for (uint32_t r = 0; r < kRows; ++r) {
          const VF zero = hn::Mul(beta, hn::Set(DF(), rows.q_sums[(first_row + r) * groups + group]));
          total[r] = hn::Add(total[r], hn::MulAdd(alpha, SumChains<kRows>(sums, r), zero));
        }
      } else {
        for (uint32_t r = 0; r < kRows; ++r) total[r] = hn::Add(total[r], SumChains<kRows>(sums, r));
      }
    }
    for (uint32_t r = 0; r < kRows; ++r) hn::StoreU(total[r], DF(), logits + r * kStripTokens + lane);
  }
}

// ---------------------------------------------------------------- weighted values

// weights[r][token] = w * alpha of one group, and zeros[r] += the strip's factor * w * beta. Without scales: w as it
// is.
HWY_ATTR inline void GroupWeights(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, uint32_t n_rows,
                                  uint32_t group, const float* w, const float* factors, float* zeros,
                                  size_t zeros_stride, float* weights) {
  for (size_t i = 0; i < n_blocks * kLanes; i += Width()) {
    const size_t lane = i % kLanes;
    const uint8_t* block = blocks + i / kLanes * span.layout->bytes;
    const auto [alpha, beta] = LoadScales(*span.layout, block + span.layout->scales_v, group, lane);
    for (uint32_t r = 0; r < n_rows; ++r) {
      const VF weight = hn::LoadU(DF(), w + r * kStripTokens + i);
      hn::StoreU(hn::Mul(weight, alpha), DF(), weights + r * kStripTokens + i);
      float* zero = zeros + r * zeros_stride + lane;
      hn::StoreU(hn::MulAdd(weight, hn::Mul(beta, hn::Set(DF(), factors[r])), hn::LoadU(DF(), zero)), DF(), zero);
    }
  }
}

// Adds the weighted values of a strip to the rows' accumulators.
template <class Rowwise, uint32_t kRows>
HWY_ATTR void StripValues(const BlockSpan& span, const uint8_t* blocks, uint32_t n_blocks, const Tiles& tiles,
                          const State& state, uint32_t first_row, const Scratch& scratch, Ahead& ahead) {
  const float* factors = scratch.factors + first_row;
  const float* weights = scratch.logits + first_row * kStripTokens;
  const size_t acc_stride = state.acc_stride, zeros_stride = state.zeros_stride;
  const bool scaled = span.layout->groups_v > 0;
  const LevelTable levels = LevelsOf<Rowwise>();
  constexpr uint32_t kSums = kRows * Chains<kRows>();
  uint32_t group = ~0u;
  for (const TilePair& pair : span.geometry->pairs_v) {
    if (scaled && pair.group != group) {
      group = pair.group;
      GroupWeights(span, blocks, n_blocks, kRows, group, scratch.logits + first_row * kStripTokens, factors,
                   state.zeros + first_row * zeros_stride + group * kLanes, zeros_stride, scratch.weights);
      weights = scratch.weights;
    }
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      VF sums[kSums];
      for (uint32_t i = 0; i < kSums; ++i) sums[i] = hn::Zero(DF());
      for (uint32_t b = 0; b < n_blocks; ++b) {
        ahead.Fetch();
        TileDot<Rowwise, kRows>(tiles.Of(b, pair.tile), tiles.Bits(pair.tile), lane, levels, weights + b * kLanes,
                                kStripTokens, sums);
      }
      const auto inside = LanesInside(pair, lane);
      for (uint32_t r = 0; r < kRows; ++r) {
        float* acc = state.acc + (first_row + r) * acc_stride + pair.tile * kLanes + lane;
        const VF add = hn::IfThenElseZero(inside, SumChains<kRows>(sums, r));
        hn::StoreU(hn::MulAdd(add, hn::Set(DF(), factors[r]), hn::LoadU(DF(), acc)), DF(), acc);
      }
    }
  }
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
