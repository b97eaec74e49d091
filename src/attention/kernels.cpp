// The attention kernels, in Highway: compiled once for each SIMD target. See kernel_api.hpp for what they compute.
//
// A step takes 64 tokens (4 blocks): logits of all rows; running maximum and exponentials; weighted values. Up to 8 rows
// (a decode step) the tiles are decoded on the fly; with more (a prefill chunk) each tile is decoded to floats once.
// Scales never touch the codes: a key's alpha multiplies its finished dot product, a value's alpha its attention weight.
//   logit = sum_g alpha_g (q_g . codes_g) + beta_g sum(q_g)        out_g = sum_t (w_t alpha_tg) codes_tg + sum_t w_t beta_tg
#include <limits>
#include <utility>

#include "attention/kernel_api.hpp"
#include "codec/fp16.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/kernels.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h: these are compiled anew for each target.
#include "attention/tile_dot-inl.hpp"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON
constexpr bool kHardwareHalves = true;
#else
constexpr bool kHardwareHalves = false;
#endif
constexpr float kHidden = -std::numeric_limits<float>::infinity();

HWY_INLINE HWY_ATTR VF LoadHalves(const uint8_t* at) {
  return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), reinterpret_cast<const hwy::float16_t*>(at)));
}

// ---------------------------------------------------------------- logits

// Raw logits (no mask) of one block for kRows rows, to logits[r * kStepTokens + lane].
template <class Decoder, uint32_t kRows>
HWY_ATTR void BlockLogits(const Segment& segment, const uint8_t* block, const uint8_t* tiles, size_t tile_bytes,
                          const Rows& rows, uint32_t first_row, float* logits) {
  const auto& pairs = segment.geometry->pairs_k;
  const size_t q_stride = pairs.size() * kLanes;
  const float* q = rows.q + first_row * q_stride;
  const uint32_t groups = segment.geometry->groups_k;
  const bool scaled = segment.layout->groups_k > 0;
  constexpr uint32_t kSums = kRows * Chains<kRows>();
  for (size_t lane = 0; lane < kLanes; lane += Width()) {
    VF total[kRows];
    for (uint32_t r = 0; r < kRows; ++r) total[r] = hn::Set(DF(), rows.bias ? rows.bias[first_row + r] : 0.0f);
    size_t p = 0;
    while (p < pairs.size()) {
      const uint32_t group = pairs[p].group;
      VF sums[kSums];
      for (uint32_t i = 0; i < kSums; ++i) sums[i] = hn::Zero(DF());
      for (; p < pairs.size() && (!scaled || pairs[p].group == group); ++p) {
        TileDot<Decoder, kRows>(tiles + tile_bytes * pairs[p].tile, lane, q + p * kLanes, q_stride, sums);
      }
      if (scaled) {
        const uint8_t* scales = block + segment.layout->scales_k + codec::kGroupScaleBytes * group + 2 * lane;
        const VF alpha = LoadHalves(scales), beta = LoadHalves(scales + 2 * kLanes);
        for (uint32_t r = 0; r < kRows; ++r) {
          const VF zero = hn::Mul(beta, hn::Set(DF(), rows.q_sums[(first_row + r) * groups + group]));
          total[r] = hn::Add(total[r], hn::MulAdd(alpha, SumChains<kRows>(sums, r), zero));
        }
      } else {
        for (uint32_t r = 0; r < kRows; ++r) total[r] = hn::Add(total[r], SumChains<kRows>(sums, r));
      }
    }
    for (uint32_t r = 0; r < kRows; ++r) hn::StoreU(total[r], DF(), logits + r * kStepTokens + lane);
  }
}

// ---------------------------------------------------------------- weighted values

// weights[b][r][lane] = w * alpha of one group, and zeros[r] += w * beta. Without scales: the weights as they are.
HWY_ATTR inline void GroupWeights(const Segment& segment, const uint8_t* blocks, uint32_t n_blocks, uint32_t n_rows,
                                  uint32_t group, const float* w, float* zeros, size_t zeros_stride, float* weights) {
  const bool scaled = segment.layout->groups_v > 0;
  for (uint32_t b = 0; b < n_blocks; ++b) {
    const uint8_t* scales = blocks + b * segment.layout->bytes + segment.layout->scales_v + codec::kGroupScaleBytes * group;
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      const VF alpha = scaled ? LoadHalves(scales + 2 * lane) : hn::Set(DF(), 1.0f);
      const VF beta = scaled ? LoadHalves(scales + 2 * (kLanes + lane)) : hn::Zero(DF());
      for (uint32_t r = 0; r < n_rows; ++r) {
        const VF weight = hn::LoadU(DF(), w + r * kStepTokens + b * kLanes + lane);
        hn::StoreU(hn::Mul(weight, alpha), DF(), weights + (b * kMaxRows + r) * kLanes + lane);
        if (!scaled) continue;
        float* zero = zeros + r * zeros_stride + lane;
        hn::StoreU(hn::MulAdd(weight, beta, hn::LoadU(DF(), zero)), DF(), zero);
      }
    }
  }
}

template <class Decoder, uint32_t kRows>
HWY_ATTR void StepValues(const Segment& segment, const uint8_t* blocks, uint32_t n_blocks, const uint8_t* tiles,
                         size_t block_stride, size_t tile_bytes, const float* w, const State& state, uint32_t first_row,
                         float* weights) {
  const auto& pairs = segment.geometry->pairs_v;
  const size_t acc_stride = state.acc_stride, zeros_stride = state.zeros_stride;
  const bool scaled = segment.layout->groups_v > 0;
  constexpr uint32_t kSums = kRows * Chains<kRows>();
  uint32_t group = ~0u;
  for (const TilePair& pair : pairs) {
    const uint32_t wanted = scaled ? pair.group : 0;
    if (wanted != group) {
      group = wanted;
      float* zeros = scaled ? state.zeros + first_row * zeros_stride + group * kLanes : nullptr;
      GroupWeights(segment, blocks, n_blocks, kRows, group, w, zeros, zeros_stride, weights);
    }
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      VF sums[kSums];
      for (uint32_t i = 0; i < kSums; ++i) sums[i] = hn::Zero(DF());
      for (uint32_t b = 0; b < n_blocks; ++b) {
        TileDot<Decoder, kRows>(tiles + b * block_stride + tile_bytes * pair.tile, lane, weights + b * kMaxRows * kLanes,
                                kLanes, sums);
      }
      const auto index = hn::Iota(DF(), float(lane));
      const auto inside = hn::And(hn::Ge(index, hn::Set(DF(), float(pair.first))),
                                  hn::Lt(index, hn::Set(DF(), float(pair.last))));
      for (uint32_t r = 0; r < kRows; ++r) {
        float* acc = state.acc + (first_row + r) * acc_stride + pair.tile * kLanes + lane;
        const VF add = hn::IfThenElseZero(inside, SumChains<kRows>(sums, r));
        hn::StoreU(hn::Add(hn::LoadU(DF(), acc), add), DF(), acc);
      }
    }
  }
}

// ---------------------------------------------------------------- dispatch on format and row count

struct StepArgs {
  const Segment& segment;
  const uint8_t* blocks;  // of the step
  uint32_t n_blocks;
  const Rows* rows;
  const State* state;
  const Scratch& scratch;
};

template <class Decoder, uint32_t kRows>
HWY_ATTR void LogitsOf(const StepArgs& args, const uint8_t* tiles, size_t block_stride, size_t tile_bytes, uint32_t row) {
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    BlockLogits<Decoder, kRows>(args.segment, args.blocks + b * args.segment.layout->bytes, tiles + b * block_stride,
                                tile_bytes, *args.rows, row, args.scratch.logits + row * kStepTokens + b * kLanes);
  }
}

template <class Decoder, uint32_t kRows>
HWY_ATTR void ValuesOf(const StepArgs& args, const uint8_t* tiles, size_t block_stride, size_t tile_bytes, uint32_t row) {
  StepValues<Decoder, kRows>(args.segment, args.blocks, args.n_blocks, tiles, block_stride, tile_bytes,
                             args.scratch.logits + row * kStepTokens, *args.state, row, args.scratch.weights);
}

enum class Work { logits, values };

template <Work kWork, class Decoder, uint32_t kRows>
HWY_ATTR void RunRows(const StepArgs& args, const uint8_t* tiles, size_t block_stride, size_t tile_bytes, uint32_t row,
                      uint32_t n) {
  if (n == kRows) {
    if constexpr (kWork == Work::logits) return LogitsOf<Decoder, kRows>(args, tiles, block_stride, tile_bytes, row);
    return ValuesOf<Decoder, kRows>(args, tiles, block_stride, tile_bytes, row);
  }
  if constexpr (kRows > 1) RunRows<kWork, Decoder, kRows - 1>(args, tiles, block_stride, tile_bytes, row, n);
}

// All rows, in chunks of nearly equal size: 12 rows are 6 + 6, not 8 + 4.
template <Work kWork, class Decoder>
HWY_ATTR void RunDecoder(const StepArgs& args, const uint8_t* tiles, size_t block_stride, size_t tile_bytes,
                         uint32_t n_rows) {
  const uint32_t n_chunks = (n_rows + kMaxRows - 1) / kMaxRows;
  for (uint32_t chunk = 0; chunk < n_chunks; ++chunk) {
    const uint32_t row = n_rows * chunk / n_chunks, end = n_rows * (chunk + 1) / n_chunks;
    RunRows<kWork, Decoder, kMaxRows>(args, tiles, block_stride, tile_bytes, row, end - row);
  }
}

template <Work kWork, class Decoder>
HWY_ATTR void RunFormat(const StepArgs& args, uint32_t n_rows) {
  const codec::BlockLayout& layout = *args.segment.layout;
  const bool keys = kWork == Work::logits;
  const uint8_t* tiles = args.blocks + (keys ? layout.data_k : layout.data_v);
  const size_t bytes = codec::tile_bytes(layout.bits);
  if (n_rows <= 2 * kMaxRows) return RunDecoder<kWork, Decoder>(args, tiles, layout.bytes, bytes, n_rows);
  const uint32_t n_tiles = keys ? layout.tiles_k : layout.tiles_v;
  constexpr size_t kTileFloats = size_t{kLanes} * kLanes;
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    for (uint32_t t = 0; t < n_tiles; ++t) {
      DecodeTile<Decoder>(tiles + b * layout.bytes + t * bytes, args.scratch.decoded + (b * n_tiles + t) * kTileFloats);
    }
  }
  RunDecoder<kWork, DecodeF32>(args, reinterpret_cast<const uint8_t*>(args.scratch.decoded),
                               n_tiles * kTileFloats * sizeof(float), kTileFloats * sizeof(float), n_rows);
}

template <Work kWork>
HWY_ATTR void Run(const StepArgs& args, uint32_t n_rows) {
  switch (args.segment.layout->bits) {
    case 2: return RunFormat<kWork, Decode2>(args, n_rows);
    case 3: return RunFormat<kWork, Decode3>(args, n_rows);
    case 4: return RunFormat<kWork, Decode4>(args, n_rows);
    case 8: return RunFormat<kWork, Decode8>(args, n_rows);
    default: return RunFormat<kWork, Decode16>(args, n_rows);
  }
}

// ---------------------------------------------------------------- mask

HWY_ATTR inline float MaskAt(const Mask& mask, uint32_t token, uint32_t cell) {
  if (cell >= mask.n_cells) return kHidden;
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + token * mask.row_stride_bytes;
  if (mask.type == Mask::Type::f32) return reinterpret_cast<const float*>(row)[cell];
  return codec::f16_to_f32(reinterpret_cast<const uint16_t*>(row)[cell]);
}

void MaskRange(const Mask& mask, uint32_t first, uint32_t n, uint32_t n_cells, float* low, float* high) {
  const uint32_t in_mask = mask.n_cells < n_cells ? mask.n_cells : n_cells;
  for (uint32_t t = 0; t < n; ++t) {
    const uint8_t* row = static_cast<const uint8_t*>(mask.data) + (first + t) * mask.row_stride_bytes;
    uint32_t cell = 0;
    // Where Highway emulates half precision it turns -inf into a large negative number: such targets go one by one.
    const bool by_vector = mask.type == Mask::Type::f32 || kHardwareHalves;
    for (; by_vector && cell + Width() <= in_mask; cell += uint32_t(Width())) {
      const VF value = mask.type == Mask::Type::f32 ? hn::LoadU(DF(), reinterpret_cast<const float*>(row) + cell)
                                                    : LoadHalves(row + 2 * cell);
      hn::StoreU(t == 0 ? value : hn::Min(value, hn::LoadU(DF(), low + cell)), DF(), low + cell);
      if (n > 1) hn::StoreU(t == 0 ? value : hn::Max(value, hn::LoadU(DF(), high + cell)), DF(), high + cell);
    }
    for (; cell < in_mask; ++cell) {
      const float value = MaskAt(mask, first + t, cell);
      low[cell] = t == 0 ? value : HWY_MIN(value, low[cell]);
      if (n > 1) high[cell] = t == 0 ? value : HWY_MAX(value, high[cell]);
    }
  }
  for (uint32_t cell = in_mask; cell < n_cells; ++cell) {
    low[cell] = kHidden;
    if (n > 1) high[cell] = kHidden;
  }
}

// Gathered smallest and largest mask value of the 16 tokens of a block.
struct BlockMask {
  float low[kLanes], high[kLanes];
  bool hidden = false;  // from every row
  bool plain = true;    // 0 for every row and token

  HWY_ATTR void Gather(const MaskTile& tile, const uint32_t* ids, uint32_t n_tokens) {
    if (!tile.mask) return;
    float top = kHidden;
    bool zero = true;
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      const auto used = hn::FirstN(DI(), n_tokens > lane ? n_tokens - lane : 0);
      const auto index = hn::IfThenElseZero(used, hn::BitCast(DI(), hn::LoadU(DU(), ids + lane)));
      const auto used_f = hn::RebindMask(DF(), used);
      const VF l = hn::GatherIndex(DF(), tile.low, index), h = hn::GatherIndex(DF(), tile.high, index);
      hn::StoreU(l, DF(), low + lane);
      hn::StoreU(h, DF(), high + lane);
      top = HWY_MAX(top, hn::GetLane(hn::MaxOfLanes(DF(), hn::IfThenElse(used_f, h, hn::Set(DF(), kHidden)))));
      const auto off = hn::Or(hn::Ne(l, hn::Zero(DF())), hn::Ne(h, hn::Zero(DF())));
      zero = zero && hn::AllFalse(DF(), hn::And(used_f, off));
    }
    hidden = top == kHidden;
    plain = zero;
  }
};

HWY_ATTR inline void AddMask(const MaskTile& tile, const BlockMask& block, const uint32_t* ids, uint32_t n_tokens,
                             uint32_t n_rows, float* logits) {
  const bool one_token = tile.low == tile.high;
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float slope = tile.slopes ? tile.slopes[r % tile.group] : 1.0f;
    const uint32_t token = tile.first_token + r / tile.group;
    for (uint32_t i = 0; i < n_tokens; ++i) {
      const float value = one_token ? block.low[i] : MaskAt(*tile.mask, token, ids[i]);
      float& logit = logits[r * kStepTokens + i];
      logit = value == kHidden ? kHidden : logit + slope * value;
    }
  }
}

// ---------------------------------------------------------------- one step

HWY_ATTR inline void CapLogits(float* logits, uint32_t n, float softcap) {
  for (uint32_t i = 0; i < n; i += uint32_t(Width())) {
    const VF x = hn::Mul(hn::LoadU(DF(), logits + i), hn::Set(DF(), 1.0f / softcap));
    hn::StoreU(hn::Mul(hn::Set(DF(), softcap), hn::Tanh(DF(), x)), DF(), logits + i);
  }
}

// Final logits of a step, hidden and unused tokens at -inf. False if no row sees any of its tokens: nothing to do then.
HWY_ATTR inline bool StepLogits(const StepArgs& args, uint32_t first_token, const MaskTile& mask, float softcap) {
  const uint32_t n_rows = args.rows->n;
  const size_t block_bytes = args.segment.layout->bytes;
  const uint32_t left = args.segment.n_tokens - first_token;
  const uint32_t n_tokens = HWY_MIN(left, args.n_blocks * kLanes);
  const auto tokens_in = [n_tokens](uint32_t b) { return HWY_MIN(n_tokens - b * kLanes, kLanes); };
  const auto ids_of = [&](uint32_t b) { return reinterpret_cast<const uint32_t*>(args.blocks + b * block_bytes); };
  BlockMask masks[kStepBlocks];
  bool any = false;
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    masks[b].Gather(mask, ids_of(b), tokens_in(b));
    any = any || !masks[b].hidden;
  }
  if (!any) return false;

  Run<Work::logits>(args, n_rows);
  float* logits = args.scratch.logits;
  if (softcap > 0.0f) {
    for (uint32_t r = 0; r < n_rows; ++r) CapLogits(logits + r * kStepTokens, args.n_blocks * kLanes, softcap);
  }
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    if (!masks[b].plain) AddMask(mask, masks[b], ids_of(b), tokens_in(b), n_rows, logits + b * kLanes);
  }
  for (uint32_t r = 0; r < n_rows; ++r) {
    for (uint32_t i = n_tokens; i < kStepTokens; ++i) logits[r * kStepTokens + i] = kHidden;
  }
  return true;
}

HWY_ATTR inline void ScaleAll(float* values, size_t n, float factor) {
  for (size_t i = 0; i < n; i += Width()) {
    hn::StoreU(hn::Mul(hn::LoadU(DF(), values + i), hn::Set(DF(), factor)), DF(), values + i);
  }
}

// logits -> weights exp(logit - max) in place; running maximum and sum; earlier sums rescaled when the maximum grows.
HWY_ATTR inline void StepSoftmax(uint32_t n_rows, float* logits, const State& state) {
  for (uint32_t r = 0; r < n_rows; ++r) {
    float* row = logits + r * kStepTokens;
    VF top = hn::LoadU(DF(), row);
    for (size_t i = Width(); i < kStepTokens; i += Width()) top = hn::Max(top, hn::LoadU(DF(), row + i));
    const float step_max = hn::GetLane(hn::MaxOfLanes(DF(), top));
    if (step_max > state.max[r]) {
      // The first time, exp(-inf) = 0 clears what is 0 anyway.
      const float factor = hn::GetLane(hn::Exp(DF(), hn::Set(DF(), state.max[r] - step_max)));
      state.max[r] = step_max;
      state.sum[r] *= factor;
      ScaleAll(state.acc + r * state.acc_stride, state.acc_stride, factor);
      if (state.other_acc) ScaleAll(state.other_acc + r * state.acc_stride, state.acc_stride, factor);
      ScaleAll(state.zeros + r * state.zeros_stride, state.zeros_stride, factor);
    }
    // A row that has seen nothing yet has maximum -inf: any finite stand-in gives weights of 0.
    const VF max = hn::Set(DF(), state.max[r] == kHidden ? 0.0f : state.max[r]);
    VF sum = hn::Zero(DF());
    for (size_t i = 0; i < kStepTokens; i += Width()) {
      const VF weight = hn::Exp(DF(), hn::Sub(hn::LoadU(DF(), row + i), max));
      hn::StoreU(weight, DF(), row + i);
      sum = hn::Add(sum, weight);
    }
    state.sum[r] += hn::GetLane(hn::SumOfLanes(DF(), sum));
  }
}

void Attend(const Segment& segment, uint32_t begin, uint32_t end, const Rows& rows, const MaskTile& mask, float softcap,
            const State& state, float* keep_logits, size_t keep_stride, const Scratch& scratch) {
  for (uint32_t first = begin; first < end; first += kStepBlocks) {
    const uint32_t n_blocks = HWY_MIN(kStepBlocks, end - first);
    const StepArgs args{segment, segment.blocks + first * segment.layout->bytes, n_blocks, &rows, &state, scratch};
    const uint32_t first_token = first * kLanes;
    const bool visible = StepLogits(args, first_token, mask, softcap);
    if (keep_logits) {
      const uint32_t n = HWY_MIN(segment.n_tokens - first_token, n_blocks * kLanes);
      for (uint32_t r = 0; r < rows.n; ++r) {
        float* kept = keep_logits + r * keep_stride + first_token;
        for (uint32_t i = 0; i < n; ++i) kept[i] = visible ? scratch.logits[r * kStepTokens + i] : kHidden;
      }
    }
    if (!visible) continue;
    StepSoftmax(rows.n, scratch.logits, state);
    Run<Work::values>(args, rows.n);
  }
}

// ---------------------------------------------------------------- importance scores

HWY_ATTR inline void AddProbabilities(const float* logits, uint32_t n, float row_max, float inverse_sum, float* scores) {
  // A row that saw nothing has an inverse sum of 0 and adds nothing.
  const VF max = hn::Set(DF(), row_max == kHidden ? 0.0f : row_max), inverse = hn::Set(DF(), inverse_sum);
  uint32_t i = 0;
  for (; i + Width() <= n; i += uint32_t(Width())) {
    const VF p = hn::Mul(hn::Exp(DF(), hn::Sub(hn::LoadU(DF(), logits + i), max)), inverse);
    hn::StoreU(hn::Add(hn::LoadU(DF(), scores + i), p), DF(), scores + i);
  }
  for (; i < n; ++i) {
    const VF p = hn::Mul(hn::Exp(DF(), hn::Sub(hn::Set(DF(), logits[i]), max)), inverse);
    scores[i] += hn::GetLane(p);
  }
}

void ScoreKept(const float* logits, size_t stride, uint32_t n, uint32_t n_rows, const float* row_max,
               const float* row_inverse_sum, float* scores) {
  for (uint32_t r = 0; r < n_rows; ++r) {
    AddProbabilities(logits + r * stride, n, row_max[r], row_inverse_sum[r], scores);
  }
}

void Score(const Segment& segment, uint32_t begin, uint32_t end, const Rows& rows, const MaskTile& mask, float softcap,
           const float* row_max, const float* row_inverse_sum, float* scores, const Scratch& scratch) {
  for (uint32_t first = begin; first < end; first += kStepBlocks) {
    const uint32_t n_blocks = HWY_MIN(kStepBlocks, end - first);
    const StepArgs args{segment, segment.blocks + first * segment.layout->bytes, n_blocks, &rows, nullptr, scratch};
    const uint32_t first_token = first * kLanes;
    if (!StepLogits(args, first_token, mask, softcap)) continue;
    const uint32_t n = HWY_MIN(segment.n_tokens - first_token, n_blocks * kLanes);
    ScoreKept(scratch.logits, kStepTokens, n, rows.n, row_max, row_inverse_sum, scores + first_token);
  }
}

const char* Name() {
#if HWY_TARGET == HWY_AVX3
  return "avx512";
#elif HWY_TARGET == HWY_AVX2
  return "avx2";
#elif HWY_TARGET == HWY_NEON
  return "neon";
#else
  return "scalar";
#endif
}

const Kernels& Table() {
  static const Kernels table{Name(), MaskRange, Attend, Score, ScoreKept};
  return table;
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mikv::attention {

HWY_EXPORT(Table);

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> tables;
  const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t target = 1; target > 0; target <<= 1) {  // a lower bit is a better target
    if (!(supported & target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    tables.push_back(&HWY_DYNAMIC_DISPATCH(Table)());
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return tables;
}

}  // namespace mikv::attention
#endif
