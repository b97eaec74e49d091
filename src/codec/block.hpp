// Block: 16 tokens of one KV head in one format; the unit of storage of a tier and of work of a kernel.
//
//   part       size                           present
//   ids        16 x u16 or u32 cell numbers   always
//   scores     16 x f32 importance            scored tiers (staged, hi)
//   arrivals   16 x u32 put order             scored tiers
//   scales K   groups x (16 alpha, 16 beta)   uniform codes; halves, by token; no beta if symmetric
//   scales V   groups x (16 alpha, 16 beta)   uniform codes
//   scales K   tiles x (16 alpha, 16 beta)    keys by channel, in place of those by token; halves, by channel
//   scales K   16 alpha                       mixed bits; bytes (codec/scale8.hpp), by token
//   scales V   16 alpha                       mixed bits
//   tiles K    channels/16 tiles              lane = token,   row = channel   (codec/tile.hpp); those of outliers first
//   tiles V    channels/16 tiles              lane = channel, row = token
//
// E.g. INT3, head_dim 128, groups of 64, ids of 4 bytes: 64 + 128 + 128 + 8*96 + 8*96 = 1856 bytes, 3.625 bits per
// element with ids. Mixed bits: each tile has 1 to 4, or 6, of its own, and the head one group. E.g. 2.75 bits on
// average, head_dim 128, narrow ids: 32 + 32 + 44*32 = 1472 bytes, 2.875 bits per element with ids. Head dimensions
// that are no multiple of 16 are padded to one; the padding is counted as codes. Outlier tiles hold the first channels
// as halves, which no group has (outlier=f16).
//
// Keys by channel (keys=channel; KIVI, arXiv 2402.02750): a channel's scale is of the block's tokens, so that a token
// cannot be encoded alone. add_tokens() encodes the keys of its whole block anew.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/tile.hpp"

namespace mikv::codec {

struct Transform;

inline constexpr uint32_t kBlockTokens = kTileSide;
inline constexpr uint32_t kMaxHeadDim = 512;

inline constexpr uint32_t kMaxTiles = kMaxHeadDim / kTileSide;
/// BlockLayout::bits where tiles differ.
inline constexpr uint32_t kMixedBits = 0;

/// Where the tiles of K or V stand and how many bits their codes have.
struct TileTable {
  std::array<uint16_t, kMaxTiles> at{};  ///< byte offset from the first tile
  std::array<uint8_t, kMaxTiles> bits{};
  std::array<float, kMaxTiles>
      weight{};  ///< mixed bits: how much an error of the tile counts when a token's scale is chosen
};
static_assert(kMaxTiles * tile_bytes(16) <= UINT16_MAX);

struct BlockLayout {
  uint32_t bits = 16;  ///< of a row of kFormats that has_blocks(), or kMixedBits
  uint32_t dim_k = 0, dim_v = 0;
  uint32_t group_k = 0, group_v = 0;    ///< channels per group; 0 for 16 bits: no scales
  uint32_t tiles_k = 0, tiles_v = 0;    ///< tiles per block
  uint32_t groups_k = 0, groups_v = 0;  ///< groups a token; 0 for 16 bits
  uint32_t outlier_tiles = 0;           ///< of K and of V; 0 for 16 bits, where all are
  bool scored = false;
  bool symmetric = false;        ///< uniform codes without zeros (codec/quantiser.hpp)
  bool keys_by_channel = false;  ///< groups of K are a channel's 16 tokens; groups_k counts tiles of their scales
  uint32_t id_bytes = 4;         ///< of a cell number: 2 or 4
  TileTable row_k, row_v;
  size_t scores = 0, arrivals = 0, scales_k = 0, scales_v = 0, data_k = 0, data_v = 0;  ///< byte offsets; ids are at 0
  size_t bytes = 0;  ///< of a block; a multiple of 32

  /// What a block of codes of as many bits each is. 16 bits have neither groups nor outlier tiles: theirs are ignored.
  struct Uniform {
    uint32_t bits = 16;
    uint32_t dim_k = 0, dim_v = 0;
    uint32_t group_k = 0, group_v = 0;  ///< divide the dimensions, less the channels of outlier tiles
    uint32_t id_bytes = 4;
    bool scored = false;
    bool symmetric = false;
    bool keys_by_channel = false;  ///< group_k is ignored then; only with zeros, and neither scores nor outlier tiles
    uint32_t outlier_tiles = 0;
  };
  static BlockLayout make(const Uniform& uniform);
  /// For each tile 1 to 4, or 6, bits and a positive weight (TileTable).
  struct MixedTiles {
    std::span<const uint8_t> bits;
    std::span<const float> weights;
  };
  static BlockLayout make_mixed(uint32_t dim_k, uint32_t dim_v, const MixedTiles& k, const MixedTiles& v,
                                uint32_t id_bytes = 4);

  /// The outlier tiles of the same blocks alone, as a layout of 16 bits. outlier_tiles > 0.
  BlockLayout outlier_part() const;

  bool mixed() const { return bits == kMixedBits; }
  /// Bytes of the scales of one group of uniform codes in a block: 16 alphas, then, unless symmetric, 16 betas, halves.
  size_t group_scale_bytes() const { return (symmetric ? 1 : 2) * sizeof(uint16_t) * kBlockTokens; }
  /// Of a full block: codes, scales, ids and scores.
  double bits_per_element() const { return 8.0 * double(bytes) / double(kTileSide * (dim_k + dim_v)); }
  size_t code_bytes_per_token() const { return (bytes - data_k) / kBlockTokens; }
  size_t scale_bytes_per_token() const { return (data_k - scales_k) / kBlockTokens; }
};

/// Blocks that hold so many tokens.
constexpr uint64_t blocks_of(uint64_t n_tokens) { return (n_tokens + kBlockTokens - 1) / kBlockTokens; }
constexpr uint32_t tiles_of(uint32_t dim) { return (dim + kTileSide - 1) / kTileSide; }

/// The cell number of token `lane`; ids stand first in a block.
inline uint32_t block_id(const uint8_t* block, const BlockLayout& layout, uint32_t lane) {
  return layout.id_bytes == 2 ? reinterpret_cast<const uint16_t*>(block)[lane]
                              : reinterpret_cast<const uint32_t*>(block)[lane];
}
inline void set_block_id(uint8_t* block, const BlockLayout& layout, uint32_t lane, uint32_t id) {
  if (layout.id_bytes == 2) {
    reinterpret_cast<uint16_t*>(block)[lane] = uint16_t(id);
  } else {
    reinterpret_cast<uint32_t*>(block)[lane] = id;
  }
}

/// Writes token `lane` of a block; k[dim_k], v[dim_v] finite and within the range of a half. Not keys by channel.
void encode_token(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k, const float* v);
/// K or V alone: what an engine hands over in two steps.
void encode_k(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k);
void encode_v(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* v);

/// The same for tokens first .. first + n - 1 of a block of mixed bits, brought into the coordinates of a tier before.
/// k[n][dim_k], v[n][dim_v]: in the engine's coordinates. Gives the codes of the formula on every CPU; those of one
/// token after the other are equal to the bit where GCC compiles for x86.
void encode_tokens(uint8_t* block, const BlockLayout& layout, const Transform& transform, uint32_t first, uint32_t n,
                   const float* k, const float* v);

inline constexpr uint32_t kEncodeTogether = 4;
/// Whether encode_tokens() is faster than encode_token() on this machine.
bool encodes_together();

/// Keys by channel: writes tokens first .. first + n - 1 of a block that holds `first` tokens. Their keys get scales
/// together with those of the tokens before, which are encoded anew. k[n][dim_k], v[n][dim_v].
void add_tokens(uint8_t* block, const BlockLayout& layout, uint32_t first, uint32_t n, const float* k, const float* v);
/// Keys by channel: writes the keys of all n tokens of a block; k[n][dim_k].
void encode_keys(uint8_t* block, const BlockLayout& layout, uint32_t n, const float* k);
/// Keys by channel: true if all scales of K are finite.
bool has_finite_key_scales(const uint8_t* block, const BlockLayout& layout);

/// Reads token `lane` back.
void decode_token(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k, float* v);
void decode_k(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k);

/// Reads the first n tokens of a block of 16 bits as they are stored: k_rows[i] gets dim_k halves, v_rows[i] dim_v.
/// Whole blocks at once, where decode_token would take each half by itself.
void read_f16(const uint8_t* block, const BlockLayout& layout, uint32_t n, uint16_t* const* k_rows,
              uint16_t* const* v_rows);
/// The same as floats: k[n][dim_k], v[n][dim_v].
void decode_f16(const uint8_t* block, const BlockLayout& layout, uint32_t n, float* k, float* v);

/// Copies everything a block holds of one token, ids and scores included, without decoding it. Keys by channel: the
/// codes, which mean the same under the same scales only.
void copy_token(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const BlockLayout& layout);

/// Where a token stands.
struct TokenAt {
  const uint8_t* block;
  uint32_t lane;
};
/// Makes tokens the tokens 0, 1, ... of a block, which may be in it already: each at its place, or behind it. Keys by
/// channel: those of one block are copied as they are, those of several are encoded anew.
void gather_tokens(std::span<const TokenAt> tokens, uint8_t* to, const BlockLayout& layout);

}  // namespace mikv::codec
