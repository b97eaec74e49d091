// What a SIMD target provides to attention: a few functions in one dispatch table, chosen once.
//
// All of them work on blocks of one KV head and on "rows": a row is one query token with one of the query heads that
// share the KV head. Rows r = token * group + head, so that consecutive `group` rows share a mask row.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codec/block.hpp"
#include "codec/transform.hpp"
#include "mikv/result.hpp"
#include "mikv/simd.hpp"
#include "mikv/types.hpp"

namespace mikv::attention {

inline constexpr uint32_t kLanes = codec::kTileSide;
/// Blocks whose logits are held at once: amortises the maximum, the exponentials and the accumulator's traffic.
inline constexpr uint32_t kStripBlocks = 8;
inline constexpr uint32_t kStripTokens = kStripBlocks * codec::kBlockTokens;
/// Rows that one decoded tile serves at most before it is decoded again.
inline constexpr uint32_t kMaxKernelRows = 8;

/// Lanes [first, last) of tile `tile` belong to scale group `group`. Where groups are multiples of 16 channels there is
/// one pair a tile; otherwise a tile that spans groups has one pair for each of them.
struct TilePair {
  uint16_t tile, group, first, last;
};
/// first: channels before it are in no group.
std::vector<TilePair> tile_pairs(uint32_t dim, uint32_t group, uint32_t first = 0);

/// The coordinates in which some tiers hold their tokens: how their tiles meet prepared queries and outputs.
struct Geometry {
  std::vector<TilePair> pairs_k, pairs_v;
  uint32_t groups_k = 1;  ///< of Rows::q_sums
};

/// A run of blocks of one tier.
struct BlockSpan {
  const uint8_t* blocks = nullptr;
  const codec::BlockLayout* layout = nullptr;
  const Geometry* geometry = nullptr;
  uint32_t n_tokens = 0;
  std::span<const uint8_t> next;  ///< what will be read after the blocks that are asked for: fetched ahead
  /// Tiles of the same blocks that hold outlier channels as halves, and their geometry: Rows::outliers meets them.
  /// Null: none, geometry has all channels.
  const codec::BlockLayout* outliers = nullptr;
  const Geometry* outlier_geometry = nullptr;
};

/// Queries prepared for a geometry, with the softmax scale folded in. Memory of the caller, written by
/// Kernels::prepare_row.
struct Rows {
  uint32_t n = 0;
  float* q = nullptr;       ///< [n][pairs_k][16]: channels of the pair's tile, 0 outside of its lanes
  float* bias = nullptr;    ///< [n] added to every logit: scale * q.mu
  float* q_sums = nullptr;  ///< [n][groups_k]: sum over the group's channels; what a zero is multiplied by
  uint8_t* q_integers =
      nullptr;  ///< [n][pairs_k][kQueryIntegerBytes], or null: no tier holds codes, or the target takes floats
  float* q_scales = nullptr;       ///< [n][groups_k]: what the integers in q_integers are multiplied by
  const Rows* outliers = nullptr;  ///< the same queries for BlockSpan::outliers; its bias is not read
};
/// Bytes of Rows::q_integers for a pair: its 16 channels as integers of 16 bits, in the order that the target wants.
inline constexpr size_t kQueryIntegerBytes = 32;

/// Mask of the tokens of a row tile. low/high: per cell, the smallest and largest mask value over the tile's tokens.
struct QueryMask {
  const Mask* mask = nullptr;  ///< null: all visible
  const float* low = nullptr;
  const float* high = nullptr;
  uint32_t first_token = 0;       ///< of the tile, in the mask
  uint32_t group = 1;             ///< query heads per KV head
  const float* slopes = nullptr;  ///< [group], or null for 1
};

/// Rows that the softmax takes at once: per-row scalars are padded to a multiple of it.
inline constexpr uint32_t kRowPadding = 16;
constexpr uint32_t padded_rows(uint32_t n) { return (n + kRowPadding - 1) / kRowPadding * kRowPadding; }

/// Softmax over what was seen so far: out = (acc + zeros spread over their groups) / sum.
struct State {
  float* max = nullptr;    ///< [padded n]
  float* sum = nullptr;    ///< [n][16]: partial sums
  float* acc = nullptr;    ///< [n][acc_stride]: the padded value channels
  float* zeros = nullptr;  ///< [n][zeros_stride]: 16 partial sums of weight * zero for each group
  size_t acc_stride = 0, zeros_stride = 0;
  float* other_acc = nullptr;  ///< null, or a second accumulator (other V coordinates) under the same max
  float* other_sum = nullptr;  ///< and its sum
};

struct Scratch {
  float* logits = nullptr;  ///< [n][kStripTokens]; then the weights, relative to the strip's largest logit
  float* factors =
      nullptr;  ///< [padded n]: what the strip's sums are multiplied by, exp(strip's largest logit - State::max)
  float* decoded = nullptr;  ///< [kStripBlocks][tiles][16][16], of K or V
  float* weights = nullptr;  ///< [kMaxKernelRows][kStripTokens]: of one group, times its scales
};

struct Kernels {
  const char* name;

  /// Fills row `row` of `rows` from q[dim], in the engine's coordinates, for keys in the coordinates of `key`.
  void (*prepare_row)(const Geometry&, const codec::Axes& key, const float* q, uint32_t dim, float scale, uint32_t row,
                      const Rows& rows);
  /// Whether codes meet integers, so that Rows::q_integers is wanted.
  bool multiplies_integers;

  /// Whether tokens first..first+n-1 of `mask` see every cell that is set in live[n_words], with a mask value of 0.
  bool (*sees_all)(const Mask& mask, uint32_t first, uint32_t n, const uint64_t* live, size_t n_words);

  /// low/high[cell] for tokens first..first+n-1 of `mask`; cells from mask.n_cells to n_cells get -inf.
  /// With n == 1 only `low` is written: high is the same.
  void (*mask_range)(const Mask& mask, uint32_t first, uint32_t n, uint32_t n_cells, float* low, float* high);

  /// Adds blocks [begin, end) to the state. keep_logits: null, or [n][keep_stride] floats that receive the final
  /// logits, those of the first token of block `begin` at [0].
  void (*attend)(const BlockSpan&, uint32_t begin, uint32_t end, const Rows&, const QueryMask&, float softcap,
                 const State&, float* keep_logits, size_t keep_stride, const Scratch&);

  /// scores[i] += sum over rows of exp(logit - max) / sum, for the tokens of blocks [begin, end).
  void (*score)(const BlockSpan&, uint32_t begin, uint32_t end, const Rows&, const QueryMask&, float softcap,
                const float* row_max, const float* row_inverse_sum, float* scores, const Scratch&);

  /// scores[i] += sum over rows of exp(logits[row][i] - max) / sum, i < n: when the logits were kept.
  void (*score_kept)(const float* logits, size_t stride, uint32_t n, uint32_t n_rows, const float* row_max,
                     const float* row_inverse_sum, float* scores);
};

/// The table in use (dispatch.cpp).
const Kernels& kernels();
/// An error if MIKV_TARGET names a target that is not available.
Status target_error();
/// One table for each target that this build has and this machine can run, best first (kernels.cpp).
std::vector<const Kernels*> all_kernels();
/// That of AVX-VNNI, or of NEON with dotprod; null where this machine has neither (dot_kernels.cpp).
const Kernels* dot_kernels();

}  // namespace mikv::attention

namespace mikv {

/// Forces a SIMD target, for tests and benchmarks. Error: the name is unknown or the machine cannot run it.
Status set_simd_target(const std::string& name);

}  // namespace mikv
