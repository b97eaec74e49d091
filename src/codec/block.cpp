#include "codec/block.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "codec/fp16.hpp"
#include "codec/quantiser.hpp"

namespace mikv::codec {
namespace {

struct Part {
  size_t scales, data;
  uint32_t dim, group;
  bool keys;  // a token is a lane of the tiles, else a row
  const Levels& levels;
};

Part part_k(const BlockLayout& layout) {
  return {layout.scales_k, layout.data_k, layout.dim_k, layout.group_k, true, layout.levels};
}
Part part_v(const BlockLayout& layout) {
  return {layout.scales_v, layout.data_v, layout.dim_v, layout.group_v, false, layout.levels};
}

// Of one token; the last tile's padding included.
template <uint32_t kBits>
using Codes = std::array<Code<kBits>, kMaxHeadDim>;

template <uint32_t kBits>
void write_codes(uint8_t* block, const Part& part, uint32_t token, const Codes<kBits>& codes) {
  uint8_t* tile = block + part.data;
  for (uint32_t c = 0; c < part.dim; c += kTileSide, tile += tile_bytes(kBits)) {
    part.keys ? store_lane<kBits>(tile, token, &codes[c]) : store_row<kBits>(tile, token, &codes[c]);
  }
}

template <uint32_t kBits>
void read_codes(const uint8_t* block, const Part& part, uint32_t token, Codes<kBits>& codes) {
  const uint8_t* tile = block + part.data;
  for (uint32_t c = 0; c < part.dim; c += kTileSide, tile += tile_bytes(kBits)) {
    part.keys ? load_lane<kBits>(tile, token, &codes[c]) : load_row<kBits>(tile, token, &codes[c]);
  }
}

uint16_t* alphas(uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<uint16_t*>(block + part.scales + kGroupScaleBytes * group);
}
const uint16_t* alphas(const uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<const uint16_t*>(block + part.scales + kGroupScaleBytes * group);
}

template <uint32_t kBits>
void encode_part(uint8_t* block, const Part& part, uint32_t token, const float* values) {
  Codes<kBits> codes;
  const uint32_t padded = (part.dim + kTileSide - 1) / kTileSide * kTileSide;
  std::fill(codes.begin() + part.dim, codes.begin() + padded, Code<kBits>{0});
  if constexpr (kBits == 16) {
    for (uint32_t c = 0; c < part.dim; ++c) codes[c] = f32_to_f16(values[c]);
  } else {
    for (uint32_t first = 0, group = 0; first < part.dim; first += part.group, ++group) {
      const GroupScale scale = quantise_group(std::span(values + first, part.group), kBits, part.levels, &codes[first]);
      uint16_t* alpha = alphas(block, part, group);
      alpha[token] = scale.alpha;
      alpha[kBlockTokens + token] = scale.beta;
    }
  }
  write_codes<kBits>(block, part, token, codes);
}

template <uint32_t kBits>
void decode_part(const uint8_t* block, const Part& part, uint32_t token, float* values) {
  Codes<kBits> codes;
  read_codes<kBits>(block, part, token, codes);
  if constexpr (kBits == 16) {
    for (uint32_t c = 0; c < part.dim; ++c) values[c] = f16_to_f32(codes[c]);
  } else {
    for (uint32_t first = 0, group = 0; first < part.dim; first += part.group, ++group) {
      const uint16_t* alpha = alphas(block, part, group);
      const float step = f16_to_f32(alpha[token]), zero = f16_to_f32(alpha[kBlockTokens + token]);
      for (uint32_t c = first; c < first + part.group; ++c) {
        values[c] = step * float(kBits > 4 ? codes[c] : part.levels[codes[c]]) + zero;
      }
    }
  }
}

template <uint32_t kBits>
void copy_part(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const Part& part) {
  Codes<kBits> codes;
  read_codes<kBits>(from, part, from_lane, codes);
  write_codes<kBits>(to, part, to_lane, codes);
  const uint32_t groups = part.group ? part.dim / part.group : 0;
  for (uint32_t group = 0; group < groups; ++group) {
    for (const uint32_t half : {0u, kBlockTokens}) {
      alphas(to, part, group)[half + to_lane] = alphas(from, part, group)[half + from_lane];
    }
  }
}

// Calls work with the number of bits as a constant.
template <typename Work>
void with_bits(uint32_t bits, Work work) {
  switch (bits) {
    case 2: return work(std::integral_constant<uint32_t, 2>());
    case 3: return work(std::integral_constant<uint32_t, 3>());
    case 4: return work(std::integral_constant<uint32_t, 4>());
    case 8: return work(std::integral_constant<uint32_t, 8>());
    default: return work(std::integral_constant<uint32_t, 16>());
  }
}

}  // namespace

BlockLayout BlockLayout::make(uint32_t bits, uint32_t dim_k, uint32_t dim_v, uint32_t group_k, uint32_t group_v,
                              bool scored, Codebook codebook) {
  BlockLayout layout;
  layout.bits = bits;
  layout.levels = make_levels(bits, codebook);
  layout.dim_k = dim_k;
  layout.dim_v = dim_v;
  layout.scored = scored;
  layout.tiles_k = (dim_k + kTileSide - 1) / kTileSide;
  layout.tiles_v = (dim_v + kTileSide - 1) / kTileSide;
  if (bits != 16) {
    layout.group_k = group_k;
    layout.group_v = group_v;
    layout.groups_k = dim_k / group_k;
    layout.groups_v = dim_v / group_v;
  }
  size_t at = sizeof(uint32_t) * kBlockTokens;
  const auto place = [&at](size_t bytes) { return std::exchange(at, at + bytes); };
  layout.scores = place(scored ? sizeof(float) * kBlockTokens : 0);
  layout.arrivals = place(scored ? sizeof(uint32_t) * kBlockTokens : 0);
  layout.scales_k = place(kGroupScaleBytes * layout.groups_k);
  layout.scales_v = place(kGroupScaleBytes * layout.groups_v);
  layout.data_k = place(tile_bytes(bits) * layout.tiles_k);
  layout.data_v = place(tile_bytes(bits) * layout.tiles_v);
  layout.bytes = at;
  return layout;
}

void encode_token(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k, const float* v) {
  with_bits(layout.bits, [&](auto bits) {
    encode_part<bits>(block, part_k(layout), lane, k);
    encode_part<bits>(block, part_v(layout), lane, v);
  });
}

void encode_k_f16(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k) {
  encode_part<16>(block, part_k(layout), lane, k);
}

void encode_v_f16(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* v) {
  encode_part<16>(block, part_v(layout), lane, v);
}

void decode_token(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k, float* v) {
  with_bits(layout.bits, [&](auto bits) {
    decode_part<bits>(block, part_k(layout), lane, k);
    decode_part<bits>(block, part_v(layout), lane, v);
  });
}

void copy_token(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const BlockLayout& layout) {
  block_ids(to)[to_lane] = block_ids(from)[from_lane];
  if (layout.scored) {
    for (const size_t part : {layout.scores, layout.arrivals}) {
      std::memcpy(to + part + 4 * to_lane, from + part + 4 * from_lane, 4);
    }
  }
  with_bits(layout.bits, [&](auto bits) {
    copy_part<bits>(from, from_lane, to, to_lane, part_k(layout));
    copy_part<bits>(from, from_lane, to, to_lane, part_v(layout));
  });
}

}  // namespace mikv::codec
