// See encode_kernels.hpp. Products and sums are rounded apart (-ffp-contract=off), as in transform.cpp and trellis.cpp.
#include "codec/encode_kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "codec/fp16.hpp"
#include "codec/scale8.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/encode_kernels.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h: this is compiled anew for each target.
#include "codec/rings-inl.hpp"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mikv::codec::HWY_NAMESPACE {

// Columns of kWidth tokens: element [c][lane] is channel c of a token. 16 tokens take 16 / kWidth of them.
using Columns = float[kMaxHeadDim * kWidth];

// hadamard() (codec/hadamard.hpp) of each lane.
HWY_ATTR inline void RotateColumns(float* columns, uint32_t dim) {
  const uint32_t block = dim & (0u - dim);
  const VF norm = hn::Set(DF(), 1.0f / std::sqrt(float(block)));
  for (uint32_t start = 0; start < dim; start += block) {
    float* x = columns + size_t{start} * kWidth;
    for (uint32_t half = 1; half < block; half *= 2) {
      for (uint32_t i = 0; i < block; i += 2 * half) {
        for (uint32_t j = i; j < i + half; ++j) {
          const VF a = hn::Load(DF(), x + j * kWidth), b = hn::Load(DF(), x + (j + half) * kWidth);
          hn::Store(hn::Add(a, b), DF(), x + j * kWidth);
          hn::Store(hn::Sub(a, b), DF(), x + (j + half) * kWidth);
        }
      }
    }
  }
  for (uint32_t c = 0; c < dim; ++c) {
    hn::Store(hn::Mul(hn::Load(DF(), columns + c * kWidth), norm), DF(), columns + c * kWidth);
  }
}

// Axes::to_tier() of the tokens first .. first + kWidth - 1 of the job; those beyond its last one are 0.
HWY_ATTR void ToTier(const EncodeJob& job, uint32_t first, float* columns) {
  const Axes& axes = *job.axes;
  const uint32_t n = std::min(job.n - first, kWidth);
  for (uint32_t place = 0; place < job.dim; ++place) {
    const uint32_t c = axes.order.empty() ? place : axes.order[place];
    HWY_ALIGN float lanes[kWidth] = {};
    for (uint32_t i = 0; i < n; ++i) lanes[i] = job.values[size_t{first + i} * job.dim + c];
    VF x = hn::Load(DF(), lanes);
    if (!axes.centre.empty()) x = hn::Sub(x, hn::Set(DF(), f16_to_f32(axes.centre[c])));
    if (!axes.balancer.empty()) x = hn::Mul(x, hn::Set(DF(), f16_to_f32(axes.balancer[c])));
    hn::Store(x, DF(), columns + place * kWidth);
  }
  uint32_t begin = 0;
  for (const uint16_t length : axes.turns) {
    RotateColumns(columns + begin * kWidth, length);
    begin += length;
  }
  if (axes.hadamard) RotateColumns(columns, job.dim);
  const VF most = hn::Set(DF(), kF16Max);
  for (uint32_t c = 0; c < job.dim; ++c) {
    const VF x = hn::Load(DF(), columns + c * kWidth);
    const VF clamped =
        hn::IfThenElse(hn::Gt(x, most), most, hn::IfThenElse(hn::Lt(x, hn::Neg(most)), hn::Neg(most), x));
    hn::Store(hn::IfThenElseZero(hn::Eq(clamped, clamped), clamped), DF(), columns + c * kWidth);
  }
  const uint32_t padded = tiles_of(job.dim) * kTileSide;
  std::fill(columns + job.dim * kWidth, columns + padded * kWidth, 0.0f);
}

template <Ring kRing>
HWY_ATTR inline void EncodeTilesOf(uint32_t bits, const float* x, VF inverse, int32_t* codes, float* levels) {
  visit_bits<has_mixed_tiles>(bits, [&](auto b) HWY_ATTR {
    if constexpr (window_bits(kRing, b) == b) {
      EncodeTilesAlone(x, inverse, codes, levels);
    } else {
      EncodeTiles<kRing, b>(x, inverse, codes, levels);
    }
  });
}

// Root mean square of each token, tiles by their weights, as the scale that the search begins with: its inverse.
HWY_ATTR VF FirstScale(const EncodeJob& job, uint32_t n_tiles, const float* columns) {
  VF squares = hn::Zero(DF());
  float sum_of_weights = 0.0f;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    VF sum = hn::Zero(DF());
    for (uint32_t i = 0; i < kTileSide; ++i) {
      const VF x = hn::Load(DF(), columns + (t * kTileSide + i) * kWidth);
      sum = hn::Add(sum, hn::Mul(x, x));
    }
    squares = hn::Add(squares, hn::Mul(hn::Set(DF(), job.row->weight[t]), sum));
    sum_of_weights += job.row->weight[t] * float(kTileSide);
  }
  HWY_ALIGN float lanes[kWidth];
  hn::Store(hn::Sqrt(hn::Div(squares, hn::Set(DF(), sum_of_weights))), DF(), lanes);
  for (float& lane : lanes) lane = 1.0f / scale8_to_f32(scale8_from_f32(kTrellisUnit * lane));
  return hn::Load(DF(), lanes);
}

// quantise_trellis() of the tokens first .. first + kWidth - 1 of the job.
HWY_ATTR void Quantise(const EncodeJob& job, uint32_t first, const float* columns) {
  const uint32_t n_tiles = tiles_of(job.dim), n = std::min(job.n - first, kWidth);
  const VF inverse = FirstScale(job, n_tiles, columns);
  VF projected = hn::Zero(DF()), level_squares = hn::Zero(DF());
  for (uint32_t t = 0; t < n_tiles; ++t) {
    const float* x = columns + t * kTileSide * kWidth;
    HWY_ALIGN int32_t codes[kTileSide * kWidth];
    HWY_ALIGN float levels[kTileSide * kWidth];
    job.ring == Ring::key ? EncodeTilesOf<Ring::key>(job.row->bits[t], x, inverse, codes, levels)
                          : EncodeTilesOf<Ring::value>(job.row->bits[t], x, inverse, codes, levels);
    VF dot = hn::Zero(DF()), square = hn::Zero(DF());
    for (uint32_t i = 0; i < kTileSide; ++i) {
      const VF level = hn::Load(DF(), levels + i * kWidth);
      dot = hn::Add(dot, hn::Mul(hn::Load(DF(), x + i * kWidth), level));
      square = hn::Add(square, hn::Mul(level, level));
    }
    const VF weight = hn::Set(DF(), job.row->weight[t]);
    projected = hn::Add(projected, hn::Mul(weight, dot));
    level_squares = hn::Add(level_squares, hn::Mul(weight, square));
    for (uint32_t lane = 0; lane < n; ++lane) {
      uint8_t* to = job.codes + (size_t{first + lane} * n_tiles + t) * kTileSide;
      for (uint32_t i = 0; i < kTileSide; ++i) to[i] = uint8_t(codes[i * kWidth + lane]);
    }
  }
  HWY_ALIGN float scales[kWidth];
  hn::Store(hn::Div(projected, level_squares), DF(), scales);
  for (uint32_t lane = 0; lane < n; ++lane) job.scales[first + lane] = scale8_from_f32(scales[lane]);
}

void Encode(const EncodeJob& job) {
  HWY_ALIGN Columns columns;
  for (uint32_t first = 0; first < job.n; first += kWidth) {
    ToTier(job, first, columns);
    Quantise(job, first, columns);
  }
}

}  // namespace mikv::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mikv::codec {
namespace {

// Not by Highway's own choice, which attention changes while it lists its kernels.
std::vector<EncodeKernels> available() {
  std::vector<EncodeKernels> kernels;
#if HWY_TARGETS & HWY_AVX3
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    kernels.push_back({"avx512", true, N_AVX3::Encode});
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    kernels.push_back({"avx2", true, N_AVX2::Encode});
  }
#endif
#if HWY_TARGETS & HWY_NEON
  kernels.push_back({"neon", true, N_NEON::Encode});
#endif
#if HWY_TARGETS & HWY_EMU128
  kernels.push_back({"scalar", false, N_EMU128::Encode});
#elif HWY_TARGETS & HWY_SCALAR
  kernels.push_back({"scalar", false, N_SCALAR::Encode});
#endif
  return kernels;
}

const EncodeKernels& named(std::string_view name) {
  const auto& all = all_encode_kernels();
  const auto found = std::ranges::find(all, name, &EncodeKernels::name);
  return found == all.end() ? all.front() : *found;
}

std::atomic<const EncodeKernels*>& chosen() {
  static std::atomic<const EncodeKernels*> kernels = [] {
    const char* forced = std::getenv("MIKV_TARGET");
    return &named(forced ? forced : "");
  }();
  return kernels;
}

}  // namespace

const std::vector<EncodeKernels>& all_encode_kernels() {
  static const std::vector<EncodeKernels> all = available();
  return all;
}

const EncodeKernels& encode_kernels() { return *chosen().load(std::memory_order_relaxed); }

void set_encode_target(std::string_view name) { chosen().store(&named(name), std::memory_order_relaxed); }

}  // namespace mikv::codec
#endif
