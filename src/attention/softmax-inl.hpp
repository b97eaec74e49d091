// The softmax of a strip, and probabilities from logits. Included once per SIMD target.

#if defined(MIKV_SOFTMAX_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_SOFTMAX_INL
#undef MIKV_SOFTMAX_INL
#else
#define MIKV_SOFTMAX_INL
#endif

#include "attention/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// x -> exp(x) of kN vectors side by side, since one alone is a long chain; x <= 0 or not much more, -inf included.
// 2^t = 2^n 2^(t - n), n the integer nearest to t = x / ln 2. Rounding t costs 2^-24 |t| relative to the result, so at
// most 3e-8 relative to 1; the polynomial (minimax on [-1/2, 1/2]) 8e-8. Where the result would be below 2^-126 it is
// 0.
template <size_t kN>
HWY_INLINE HWY_ATTR void ExpAll(VF (&x)[kN]) {
  constexpr float kPolynomial[] = {1.00000012f,   0.693146944f,   0.240221202f,
                                   0.0555071309f, 0.00967554096f, 0.00132764713f};
  // Added to a small number, it leaves the nearest integer in the low bits.
  const VF magic = hn::Set(DF(), 12582912.0f);
  VF n[kN], p[kN];
#pragma GCC unroll 8
  for (size_t i = 0; i < kN; ++i) {
    x[i] = hn::Mul(x[i], hn::Set(DF(), 1.44269504f));
    n[i] = hn::Add(x[i], magic);
    p[i] = hn::Set(DF(), kPolynomial[5]);
  }
#pragma GCC unroll 8
  for (int term = 4; term >= 0; --term) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kN; ++i) {
      p[i] = hn::MulAdd(p[i], hn::Sub(x[i], hn::Sub(n[i], magic)), hn::Set(DF(), kPolynomial[term]));
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < kN; ++i) {
    const VI scaled = hn::Add(hn::BitCast(DI(), p[i]), hn::ShiftLeft<23>(hn::BitCast(DI(), n[i])));
    x[i] = hn::IfThenElseZero(hn::Gt(x[i], hn::Set(DF(), -126.0f)), hn::BitCast(DF(), scaled));
  }
}

HWY_INLINE HWY_ATTR VF Exp(VF x) {
  VF one[1] = {x};
  ExpAll(one);
  return one[0];
}

// A row that has seen nothing has a maximum of -inf: any finite stand-in gives weights of 0.
HWY_INLINE HWY_ATTR VF FiniteMax(VF max) {
  return hn::IfThenElse(hn::Eq(max, hn::Set(DF(), kHidden)), hn::Zero(DF()), max);
}

HWY_ATTR inline void ScaleAll(float* values, size_t n, float factor) {
  for (size_t i = 0; i < n; i += Width()) {
    hn::StoreU(hn::Mul(hn::LoadU(DF(), values + i), hn::Set(DF(), factor)), DF(), values + i);
  }
}

// Raises the running maxima to those of the strip, strip_max[padded n]; earlier sums shrink accordingly. factors, in
// place of strip_max: what the weights of the strip are to be multiplied by.
HWY_ATTR inline void RaiseMaxima(uint32_t n_rows, const State& state, float* strip_max) {
  for (uint32_t r = 0; r < n_rows; r += uint32_t(Width())) {
    const VF old = hn::LoadU(DF(), state.max + r), of_strip = hn::LoadU(DF(), strip_max + r);
    const VF raised = hn::Max(old, of_strip), finite = FiniteMax(raised);
    hn::StoreU(Exp(hn::Sub(of_strip, finite)), DF(), strip_max + r);
    if (hn::AllFalse(DF(), hn::Gt(raised, old))) continue;
    hn::StoreU(raised, DF(), state.max + r);
    float shrink[kLanes];
    hn::StoreU(Exp(hn::Sub(old, finite)), DF(), shrink);  // the first time, exp(-inf) = 0 clears what is 0 anyway
    for (uint32_t i = 0; i < Width() && r + i < n_rows; ++i) {
      if (shrink[i] == 1.0f) continue;
      const uint32_t row = r + i;
      ScaleAll(state.sum + row * kLanes, kLanes, shrink[i]);
      ScaleAll(state.acc + row * state.acc_stride, state.acc_stride, shrink[i]);
      if (state.other_acc) {
        ScaleAll(state.other_acc + row * state.acc_stride, state.acc_stride, shrink[i]);
        ScaleAll(state.other_sum + row * kLanes, kLanes, shrink[i]);
      }
      ScaleAll(state.zeros + row * state.zeros_stride, state.zeros_stride, shrink[i]);
    }
  }
}

// logits -> weights exp(logit - the strip's largest) in place, n_blocks blocks of each row and what follows up to a
// multiple of 4 blocks, where logits are -inf; factors: see Scratch. Weights relative to the strip's own maximum are at
// most 1, which is what rounding them to integers wants.
HWY_ATTR inline void StripSoftmax(uint32_t n_rows, uint32_t n_blocks, float* logits, const State& state,
                                  float* factors) {
  const size_t n = (n_blocks + 3) / 4 * 4 * kLanes;
  for (uint32_t r = n_rows; r < padded_rows(n_rows); ++r) factors[r] = kHidden;
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float* row = logits + r * kStripTokens;
    VF top = hn::LoadU(DF(), row);
    for (size_t i = Width(); i < n; i += Width()) top = hn::Max(top, hn::LoadU(DF(), row + i));
    factors[r] = hn::GetLane(hn::MaxOfLanes(DF(), top));
  }
  for (uint32_t r = 0; r < n_rows; ++r) {
    float* row = logits + r * kStripTokens;
    const VF max = FiniteMax(hn::Set(DF(), factors[r]));
    for (size_t i = 0; i < n; i += 4 * Width()) {
      VF x[4];
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) x[j] = hn::Sub(hn::LoadU(DF(), row + i + j * Width()), max);
      ExpAll(x);
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) hn::StoreU(x[j], DF(), row + i + j * Width());
    }
  }
  RaiseMaxima(n_rows, state, factors);
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float* row = logits + r * kStripTokens;
    const VF factor = hn::Set(DF(), factors[r]);
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      VF sum = hn::LoadU(DF(), row + lane);
      for (size_t i = lane + kLanes; i < n; i += kLanes) sum = hn::Add(sum, hn::LoadU(DF(), row + i));
      float* total = state.sum + r * kLanes + lane;
      hn::StoreU(hn::MulAdd(sum, factor, hn::LoadU(DF(), total)), DF(), total);
    }
  }
}

// scores[i] += exp(logits[i] - row_max) * inverse_sum
HWY_ATTR inline void AddProbabilities(const float* logits, uint32_t n, float row_max, float inverse_sum,
                                      float* scores) {
  // A row that saw nothing has an inverse sum of 0 and adds nothing.
  const VF max = FiniteMax(hn::Set(DF(), row_max)), inverse = hn::Set(DF(), inverse_sum);
  uint32_t i = 0;
  for (; i + Width() <= n; i += uint32_t(Width())) {
    const VF p = Exp(hn::Sub(hn::LoadU(DF(), logits + i), max));
    hn::StoreU(hn::MulAdd(p, inverse, hn::LoadU(DF(), scores + i)), DF(), scores + i);
  }
  for (; i < n; ++i) scores[i] += inverse_sum * hn::GetLane(Exp(hn::Sub(hn::Set(DF(), logits[i]), max)));
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
