// What engines and caches exchange: cells, shapes, masks, RoPE, the arguments of attention, sizes in bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "mikv/export.h"
namespace mikv {

/// The address of a token's K and V within a buffer of cells ("stream", context.hpp).
using Cell = uint32_t;

/// Largest cell number + 1 that a cache accepts. Cells index a bitmap, whose size a hostile number must not choose.
inline constexpr uint32_t kMaxCells = 1u << 27;

/// Heads and channels of one attention layer.
struct LayerShape {
  uint32_t n_heads = 0;     ///< query heads; a multiple of n_kv_heads, 1 to 16 of them per KV head
  uint32_t n_kv_heads = 0;  ///< key/value heads, 1 to 256
  uint32_t head_dim_k = 0;  ///< channels of a key and of a query: a multiple of 8, up to 512
  uint32_t head_dim_v = 0;  ///< channels of a value: a multiple of 8, up to 512
  bool operator==(const LayerShape&) const = default;
};

/// Rotary position embedding of a layer's keys (arXiv 2104.09864): at position p, channel pair i is rotated by
/// p * angles[i] radians.
struct Rope {
  std::vector<float> angles;  ///< radians per position, one per rotated channel pair; empty: no RoPE
  bool adjacent = false;      ///< pair i is channels 2i and 2i + 1; else channels i and i + angles.size()

  /// The two channels of pair i.
  std::array<uint32_t, 2> channels(uint32_t i) const {
    return adjacent ? std::array{2 * i, 2 * i + 1} : std::array{i, i + uint32_t(angles.size())};
  }
};

/// Additive mask with one row per query token: element [token][cell] is added to the logit; -inf hides the cell.
struct Mask {
  enum class Type : uint8_t { none, f16, f32 };
  Type type = Type::none;       ///< none: see the call that takes the mask
  const void* data = nullptr;   ///< borrowed for the call
  size_t row_stride_bytes = 0;  ///< from token t to token t + 1
  uint32_t n_cells = 0;         ///< columns; cells from here on are hidden
};

/// One attention call: the queries of n_tokens tokens, and where their outputs go. Memory is borrowed for the call.
struct AttendArgs {
  const float* q = nullptr;     ///< [n_tokens][n_heads][head_dim_k], channels contiguous, RoPE applied
  size_t q_token_stride = 0;    ///< in floats
  size_t q_head_stride = 0;     ///< in floats
  float* out = nullptr;         ///< [n_tokens][n_heads][head_dim_v], channels contiguous; written
  size_t out_token_stride = 0;  ///< in floats
  size_t out_head_stride = 0;   ///< in floats
  uint32_t n_tokens = 0;
  uint32_t stream = 0;   ///< of cells that the queries see: 0 in a unified context, else the sequence's number
  float scale = 1.0f;    ///< of the logits, usually 1 / sqrt(head_dim_k)
  float softcap = 0.0f;  ///< logits become softcap * tanh(logit / softcap); 0: off
  Mask mask;
  const float* mask_slopes = nullptr;  ///< [n_heads] factor on the mask (ALiBi), or null for 1
  const float* sinks = nullptr;        ///< [n_heads] attention-sink logits, or null
};

/// Bytes by what they hold. Every byte allocated for live data is in one of the first eight.
struct MemoryUsage {
  uint64_t staged = 0;           ///< payload that is not compressed yet, f16 or 8 bits; all of an uncompressed cache
  uint64_t hi = 0;               ///< codes of the hi tier
  uint64_t lo = 0;               ///< codes of the lo tier
  uint64_t scales = 0;           ///< scales and zeros of hi and lo
  uint64_t ids = 0;              ///< cell ids and the bitmaps of live cells
  uint64_t scores = 0;           ///< importance scores and arrival numbers
  uint64_t calibration = 0;      ///< centres, balancers, statistics of queries
  uint64_t slack = 0;            ///< allocated, not in use: unused slots of open blocks, growth reserve
  uint64_t n_elements = 0;       ///< elements of K and V of live cells, evicted ones included
  uint64_t n_staged_tokens = 0;  ///< summed over layers and KV heads, as the next three
  uint64_t n_hi_tokens = 0;
  uint64_t n_lo_tokens = 0;
  uint64_t n_evicted_tokens = 0;
  uint64_t n_tokens = 0;  ///< of the layer that holds most; of several contexts the sum. Known of contexts only

  uint64_t total() const { return staged + hi + lo + scales + ids + scores + calibration + slack; }
  double bits_per_element() const { return n_elements ? 8.0 * double(total()) / double(n_elements) : 0.0; }
  MIKV_API MemoryUsage& operator+=(const MemoryUsage& other);
};

/// Where a stored token's K and V are. evicted: nowhere, under a policy that drops what is not important.
enum class TokenTier : uint8_t { staged, hi, lo, evicted };

}  // namespace mikv
