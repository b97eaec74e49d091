// BlockLayout: where the parts of a block stand.
#include <algorithm>
#include <array>
#include <utility>

#include "codec/block.hpp"

namespace mikv::codec {

namespace {

void place_tiles(std::span<const uint8_t> bits, TileTable& row) {
  size_t at = 0;
  for (size_t t = 0; t < bits.size(); ++t) {
    row.bits[t] = bits[t];
    row.at[t] = uint16_t(at);
    at += tile_bytes(bits[t]);
  }
}

// Offsets of the parts; everything else is set.
void place_parts(BlockLayout& layout, size_t group_scale_bytes) {
  size_t at = size_t{layout.id_bytes} * kBlockTokens;
  const auto place = [&at](size_t bytes) { return std::exchange(at, at + bytes); };
  const auto data_bytes = [](const TileTable& row, uint32_t n) { return row.at[n - 1] + tile_bytes(row.bits[n - 1]); };
  layout.scores = place(layout.scored ? sizeof(float) * kBlockTokens : 0);
  layout.arrivals = place(layout.scored ? sizeof(uint32_t) * kBlockTokens : 0);
  layout.scales_k = place(group_scale_bytes * layout.groups_k);
  layout.scales_v = place(group_scale_bytes * layout.groups_v);
  layout.data_k = place(data_bytes(layout.row_k, layout.tiles_k));
  layout.data_v = place(data_bytes(layout.row_v, layout.tiles_v));
  layout.bytes = at;
}

}  // namespace

BlockLayout BlockLayout::make(const Uniform& uniform) {
  BlockLayout layout;
  layout.bits = uniform.bits;
  layout.id_bytes = uniform.id_bytes;
  layout.dim_k = uniform.dim_k;
  layout.dim_v = uniform.dim_v;
  layout.scored = uniform.scored;
  layout.tiles_k = tiles_of(uniform.dim_k);
  layout.tiles_v = tiles_of(uniform.dim_v);
  std::array<uint8_t, kMaxTiles> tile_bits;
  tile_bits.fill(uint8_t(uniform.bits));
  std::fill_n(tile_bits.begin(), uniform.outlier_tiles, uint8_t{16});
  place_tiles({tile_bits.data(), layout.tiles_k}, layout.row_k);
  place_tiles({tile_bits.data(), layout.tiles_v}, layout.row_v);
  if (uniform.bits != 16) {
    const uint32_t first_grouped = uniform.outlier_tiles * kTileSide;
    layout.symmetric = uniform.symmetric;
    layout.outlier_tiles = uniform.outlier_tiles;
    layout.keys_by_channel = uniform.keys_by_channel;
    layout.group_k = uniform.keys_by_channel ? 1 : uniform.group_k;
    layout.group_v = uniform.group_v;
    layout.groups_k = uniform.keys_by_channel ? layout.tiles_k : (uniform.dim_k - first_grouped) / uniform.group_k;
    layout.groups_v = (uniform.dim_v - first_grouped) / uniform.group_v;
  }
  place_parts(layout, layout.group_scale_bytes());
  return layout;
}

BlockLayout BlockLayout::make_mixed(uint32_t dim_k, uint32_t dim_v, const MixedTiles& k, const MixedTiles& v,
                                    uint32_t id_bytes) {
  BlockLayout layout =
      make({.bits = 2, .dim_k = dim_k, .dim_v = dim_v, .group_k = dim_k, .group_v = dim_v, .id_bytes = id_bytes});
  layout.bits = kMixedBits;
  place_tiles(k.bits, layout.row_k);
  place_tiles(v.bits, layout.row_v);
  std::copy(k.weights.begin(), k.weights.end(), layout.row_k.weight.begin());
  std::copy(v.weights.begin(), v.weights.end(), layout.row_v.weight.begin());
  place_parts(layout, kBlockTokens);
  return layout;
}

BlockLayout BlockLayout::outlier_part() const {
  BlockLayout outliers = *this;
  outliers.bits = 16;
  outliers.dim_k = outliers.dim_v = outlier_tiles * kTileSide;
  outliers.tiles_k = outliers.tiles_v = outlier_tiles;
  outliers.group_k = outliers.group_v = outliers.groups_k = outliers.groups_v = outliers.outlier_tiles = 0;
  return outliers;
}

}  // namespace mikv::codec
