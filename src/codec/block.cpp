#include "codec/block.hpp"

#include <array>
#include <cstring>
#include <span>
#include <utility>

#include "codec/fp16.hpp"
#include "codec/quantiser.hpp"

namespace mikv::codec {
namespace {

// Which of the two tile orders a tensor is stored in: K has the channel in the row, V has it in the lane.
enum class Order { channel_in_row, channel_in_lane };

struct Part {
  size_t scales, data;
  uint32_t dim, group;
  Order order;
  const Levels& levels;
};

Part part_k(const BlockLayout& layout) {
  return {layout.scales_k, layout.data_k, layout.dim_k, layout.group_k, Order::channel_in_row, layout.levels};
}
Part part_v(const BlockLayout& layout) {
  return {layout.scales_v, layout.data_v, layout.dim_v, layout.group_v, Order::channel_in_lane, layout.levels};
}

uint32_t row_of(Order order, uint32_t channel, uint32_t token) {
  return order == Order::channel_in_row ? channel % kTileSide : token;
}
uint32_t lane_of(Order order, uint32_t channel, uint32_t token) {
  return order == Order::channel_in_row ? token : channel % kTileSide;
}

template <uint32_t Bits>
void write_codes(uint8_t* data, Order order, uint32_t first_channel, uint32_t n, uint32_t token, const uint8_t* codes) {
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t channel = first_channel + i;
    set_code(data + tile_bytes(Bits) * (channel / kTileSide), Bits, row_of(order, channel, token),
             lane_of(order, channel, token), codes[i]);
  }
}

template <uint32_t Bits>
void read_codes(const uint8_t* data, Order order, uint32_t n, uint32_t token, uint8_t* codes) {
  for (uint32_t channel = 0; channel < n; ++channel) {
    codes[channel] = uint8_t(get_code(data + tile_bytes(Bits) * (channel / kTileSide), Bits,
                                      row_of(order, channel, token), lane_of(order, channel, token)));
  }
}

uint16_t* alphas(uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<uint16_t*>(block + part.scales + kGroupScaleBytes * group);
}
const uint16_t* alphas(const uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<const uint16_t*>(block + part.scales + kGroupScaleBytes * group);
}

template <uint32_t Bits>
void encode_part(uint8_t* block, const Part& part, uint32_t token, const float* values) {
  std::array<uint8_t, kMaxHeadDim> codes;
  for (uint32_t first = 0, group = 0; first < part.dim; first += part.group, ++group) {
    const GroupScale scale = quantise_group(std::span(values + first, part.group), Bits, part.levels, codes.data());
    uint16_t* alpha = alphas(block, part, group);
    alpha[token] = scale.alpha;
    alpha[kBlockTokens + token] = scale.beta;
    write_codes<Bits>(block + part.data, part.order, first, part.group, token, codes.data());
  }
}

template <uint32_t Bits>
void decode_part(const uint8_t* block, const Part& part, uint32_t token, float* values) {
  std::array<uint8_t, kMaxHeadDim> codes;
  read_codes<Bits>(block + part.data, part.order, part.dim, token, codes.data());
  for (uint32_t first = 0, group = 0; first < part.dim; first += part.group, ++group) {
    const uint16_t* alpha = alphas(block, part, group);
    const float step = f16_to_f32(alpha[token]), zero = f16_to_f32(alpha[kBlockTokens + token]);
    for (uint32_t c = first; c < first + part.group; ++c) {
      values[c] = step * float(Bits > 4 ? codes[c] : part.levels[codes[c]]) + zero;
    }
  }
}

uint16_t* half_at(uint8_t* data, Order order, uint32_t channel, uint32_t token) {
  return reinterpret_cast<uint16_t*>(data + tile_bytes(16) * (channel / kTileSide)) +
         kTileSide * row_of(order, channel, token) + lane_of(order, channel, token);
}

void encode_half_part(uint8_t* block, const Part& part, uint32_t token, const float* values) {
  for (uint32_t c = 0; c < part.dim; ++c) *half_at(block + part.data, part.order, c, token) = f32_to_f16(values[c]);
}

void decode_half_part(const uint8_t* block, const Part& part, uint32_t token, float* values) {
  uint8_t* data = const_cast<uint8_t*>(block) + part.data;  // half_at serves both directions; nothing is written here
  for (uint32_t c = 0; c < part.dim; ++c) values[c] = f16_to_f32(*half_at(data, part.order, c, token));
}

void encode_any(uint8_t* block, uint32_t bits, const Part& part, uint32_t token, const float* values) {
  switch (bits) {
    case 2: return encode_part<2>(block, part, token, values);
    case 3: return encode_part<3>(block, part, token, values);
    case 4: return encode_part<4>(block, part, token, values);
    case 8: return encode_part<8>(block, part, token, values);
    default: return encode_half_part(block, part, token, values);
  }
}

void decode_any(const uint8_t* block, uint32_t bits, const Part& part, uint32_t token, float* values) {
  switch (bits) {
    case 2: return decode_part<2>(block, part, token, values);
    case 3: return decode_part<3>(block, part, token, values);
    case 4: return decode_part<4>(block, part, token, values);
    case 8: return decode_part<8>(block, part, token, values);
    default: return decode_half_part(block, part, token, values);
  }
}

void copy_part(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, uint32_t bits, const Part& part) {
  for (uint32_t channel = 0; channel < part.dim; ++channel) {
    const size_t tile = part.data + tile_bytes(bits) * (channel / kTileSide);
    const uint32_t code = get_code(from + tile, bits, row_of(part.order, channel, from_lane),
                                   lane_of(part.order, channel, from_lane));
    set_code(to + tile, bits, row_of(part.order, channel, to_lane), lane_of(part.order, channel, to_lane), code);
  }
  const uint32_t groups = part.group ? part.dim / part.group : 0;
  for (uint32_t group = 0; group < groups; ++group) {
    for (const uint32_t half : {0u, kBlockTokens}) {
      alphas(to, part, group)[half + to_lane] = alphas(from, part, group)[half + from_lane];
    }
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
  encode_any(block, layout.bits, part_k(layout), lane, k);
  encode_any(block, layout.bits, part_v(layout), lane, v);
}

void encode_k_f16(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k) {
  encode_half_part(block, part_k(layout), lane, k);
}

void encode_v_f16(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* v) {
  encode_half_part(block, part_v(layout), lane, v);
}

void decode_token(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k, float* v) {
  decode_any(block, layout.bits, part_k(layout), lane, k);
  decode_any(block, layout.bits, part_v(layout), lane, v);
}

void copy_token(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const BlockLayout& layout) {
  block_ids(to)[to_lane] = block_ids(from)[from_lane];
  if (layout.scored) {
    for (const size_t part : {layout.scores, layout.arrivals}) {
      std::memcpy(to + part + 4 * to_lane, from + part + 4 * from_lane, 4);
    }
  }
  copy_part(from, from_lane, to, to_lane, layout.bits, part_k(layout));
  copy_part(from, from_lane, to, to_lane, layout.bits, part_v(layout));
}

}  // namespace mikv::codec
