// The mask of a strip: which cells a tile of query tokens can see. Included once per SIMD target.

#if defined(MIKV_MASK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_MASK_INL
#undef MIKV_MASK_INL
#else
#define MIKV_MASK_INL
#endif

#include "attention/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON
constexpr bool kHardwareHalves = true;
#else
constexpr bool kHardwareHalves = false;
#endif

HWY_ATTR inline float MaskAt(const Mask& mask, uint32_t token, uint32_t cell) {
  if (cell >= mask.n_cells) return kHidden;
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + token * mask.row_stride_bytes;
  if (mask.type == Mask::Type::f32) return reinterpret_cast<const float*>(row)[cell];
  return codec::f16_to_f32(reinterpret_cast<const uint16_t*>(row)[cell]);
}

// See Kernels::sees_all.
bool SeesAll(const Mask& mask, uint32_t first, uint32_t n, const uint64_t* live, size_t n_words) {
  const hn::CappedTag<uint16_t, 64> d16;
  const hn::CappedTag<uint32_t, 64> d32;
  for (size_t word = 0; word < n_words; ++word) {
    if (!live[word]) continue;
    const uint32_t cell = uint32_t(word * 64);
    for (uint32_t t = 0; t < n; ++t) {
      const uint8_t* row = static_cast<const uint8_t*>(mask.data) + (first + t) * mask.row_stride_bytes;
      uint64_t other = 0;  // cells whose mask is not 0, bit by bit
      if (cell + 64 > mask.n_cells) {
        for (uint32_t i = 0; i < 64; ++i) other |= uint64_t{MaskAt(mask, first + t, cell + i) != 0.0f} << i;
      } else if (mask.type == Mask::Type::f32) {
        for (uint32_t i = 0; i < 64; i += uint32_t(hn::Lanes(d32))) {
          // Shifted by one bit: -0 is 0 as well.
          const auto bits = hn::ShiftLeft<1>(hn::LoadU(d32, reinterpret_cast<const uint32_t*>(row) + cell + i));
          uint64_t set = 0;
          hn::StoreMaskBits(d32, hn::Ne(bits, hn::Zero(d32)), reinterpret_cast<uint8_t*>(&set));
          other |= set << i;
        }
      } else {
        for (uint32_t i = 0; i < 64; i += uint32_t(hn::Lanes(d16))) {
          const auto bits = hn::ShiftLeft<1>(hn::LoadU(d16, reinterpret_cast<const uint16_t*>(row) + cell + i));
          uint64_t set = 0;
          hn::StoreMaskBits(d16, hn::Ne(bits, hn::Zero(d16)), reinterpret_cast<uint8_t*>(&set));
          other |= set << i;
        }
      }
      if (live[word] & other) return false;
    }
  }
  return true;
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

// Cells of tokens [lane, lane + width) of a block.
HWY_INLINE HWY_ATTR VU LoadIds(const codec::BlockLayout& layout, const uint8_t* block, size_t lane) {
  if (layout.id_bytes == sizeof(uint32_t)) return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(block) + lane);
  return hn::PromoteTo(DU(), hn::LoadU(hn::Rebind<uint16_t, DU>(), reinterpret_cast<const uint16_t*>(block) + lane));
}

// What a tile of query tokens sees of the 16 tokens of a block.
struct BlockMask {
  float high[kLanes];   // largest mask value of each
  bool hidden = false;  // from every row
  bool plain = true;    // 0 for every row and token

  HWY_ATTR void Gather(const QueryMask& tile, const codec::BlockLayout& layout, const uint8_t* block,
                       uint32_t n_tokens) {
    if (!tile.mask) return;
    // Largest values first: most blocks of a window or of other sequences are hidden, and need no more than these.
    const auto index_at = [&](size_t lane) HWY_ATTR {
      const auto used = hn::FirstN(DI(), n_tokens > lane ? n_tokens - lane : 0);
      return hn::IfThenElseZero(used,
                                hn::BitCast(DI(), LoadIds(layout, block, lane)));  // unused: cell 0, overruled below
    };
    const auto used_at = [&](size_t lane) HWY_ATTR { return hn::FirstN(DF(), n_tokens > lane ? n_tokens - lane : 0); };
    VF top = hn::Set(DF(), kHidden);
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      const VF value = hn::GatherIndex(DF(), tile.high, index_at(lane));
      hn::StoreU(value, DF(), high + lane);
      top = hn::Max(top, hn::IfThenElse(used_at(lane), value, hn::Set(DF(), kHidden)));
    }
    hidden = hn::AllTrue(DF(), hn::Eq(top, hn::Set(DF(), kHidden)));
    plain = !hidden;
    if (hidden) return;
    for (size_t lane = 0; lane < kLanes; lane += Width()) {
      const VF value = hn::GatherIndex(DF(), tile.low, index_at(lane));
      const auto off = hn::Or(hn::Ne(value, hn::Zero(DF())), hn::Ne(hn::LoadU(DF(), high + lane), hn::Zero(DF())));
      plain = plain && hn::AllFalse(DF(), hn::And(used_at(lane), off));
    }
  }
};

HWY_ATTR inline void AddMask(const QueryMask& tile, const BlockMask& seen, const codec::BlockLayout& layout,
                             const uint8_t* block, uint32_t n_tokens, uint32_t n_rows, float* logits) {
  if (seen.hidden) {
    for (uint32_t r = 0; r < n_rows; ++r) {
      for (uint32_t i = 0; i < kLanes; i += uint32_t(Width()))
        hn::StoreU(hn::Set(DF(), kHidden), DF(), logits + r * kStripTokens + i);
    }
    return;
  }
  const bool one_token = tile.low == tile.high;
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float slope = tile.slopes ? tile.slopes[r % tile.group] : 1.0f;
    const uint32_t token = tile.first_token + r / tile.group;
    for (uint32_t i = 0; i < n_tokens; ++i) {
      const float value = one_token ? seen.high[i] : MaskAt(*tile.mask, token, codec::block_id(block, layout, i));
      float& logit = logits[r * kStripTokens + i];
      logit = value == kHidden ? kHidden : logit + slope * value;
    }
  }
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
