// Brings a query to the coordinates of a tier and to the order in which kernels read it. Included once per SIMD target.

#if defined(MIKV_PREPARE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_PREPARE_INL
#undef MIKV_PREPARE_INL
#else
#define MIKV_PREPARE_INL
#endif

#include <cstring>

#include "attention/integer_tiles-inl.hpp"
#include "attention/vectors-inl.hpp"
#include "codec/transform.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// Halves at [first, first + width) of values[dim]; `padding` from dim on.
HWY_ATTR inline VF HalvesOr(const uint16_t* values, uint32_t first, uint32_t dim, float padding) {
  if (first + Width() <= dim) return LoadHalves(reinterpret_cast<const uint8_t*>(values + first));
  float padded[kLanes];
  for (uint32_t i = 0; i < Width(); ++i) padded[i] = first + i < dim ? codec::f16_to_f32(values[first + i]) : padding;
  return hn::LoadU(DF(), padded);
}

HWY_ATTR inline void PrepareRow(const Geometry& geometry, const codec::Axes& key, const float* query, uint32_t dim,
                                float scale, uint32_t row, const Rows& rows) {
  float q[codec::kMaxHeadDim + kLanes];
  std::memcpy(q, query, dim * sizeof(float));
  std::memset(q + dim, 0, kLanes * sizeof(float));
  VF bias = hn::Zero(DF());
  for (uint32_t c = 0; c < dim; c += uint32_t(Width())) {
    VF value = hn::LoadU(DF(), q + c);
    if (!key.centre.empty()) bias = hn::MulAdd(value, HalvesOr(key.centre.data(), c, dim, 0.0f), bias);
    if (!key.balancer.empty()) value = hn::Div(value, HalvesOr(key.balancer.data(), c, dim, 1.0f));
    hn::StoreU(value, DF(), q + c);
  }
  rows.bias[row] = scale * hn::GetLane(hn::SumOfLanes(DF(), bias));
  key.arrange({q, dim});

  const auto& pairs = geometry.pairs_k;
  float* to = rows.q + row * pairs.size() * kLanes;
  float* sums = rows.q_sums + row * geometry.groups_k;
  for (size_t p = 0; p < pairs.size();) {
    const uint32_t group = pairs[p].group;
    VF sum = hn::Zero(DF());
    for (; p < pairs.size() && pairs[p].group == group; ++p) {
      for (size_t lane = 0; lane < kLanes; lane += Width()) {
        const VF scaled = hn::Mul(hn::LoadU(DF(), q + pairs[p].tile * kLanes + lane), hn::Set(DF(), scale));
        const VF inside = hn::IfThenElseZero(LanesInside(pairs[p], lane), scaled);
        hn::StoreU(inside, DF(), to + p * kLanes + lane);
        sum = hn::Add(sum, inside);
      }
    }
    sums[group] = hn::GetLane(hn::SumOfLanes(DF(), sum));
  }
#if MIKV_HAS_INTEGER_TILES
  if (rows.q_integers) RoundQuery(geometry, row, rows);
#endif
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
