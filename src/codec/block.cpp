#include "codec/block.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "codec/cpu_clones.hpp"
#include "codec/encode_kernels.hpp"
#include "codec/fp16.hpp"
#include "codec/quantiser.hpp"
#include "codec/scale8.hpp"
#include "codec/trellis.hpp"

namespace mikv::codec {
namespace {

struct Part {
  size_t scales, data, group_scale_bytes;
  uint32_t dim, group, n_tiles, n_outlier;
  bool symmetric;
  bool keys;  // a token is a lane of the tiles, else a row
  bool by_channel;
  const TileTable& row;

  uint32_t first_grouped() const { return n_outlier * kTileSide; }  // channel
};

Part part_k(const BlockLayout& layout) {
  return {layout.scales_k, layout.data_k,        layout.group_scale_bytes(), layout.dim_k, layout.group_k,
          layout.tiles_k,  layout.outlier_tiles, layout.symmetric,           true,         layout.keys_by_channel,
          layout.row_k};
}
Part part_v(const BlockLayout& layout) {
  return {layout.scales_v, layout.data_v,        layout.group_scale_bytes(), layout.dim_v, layout.group_v,
          layout.tiles_v,  layout.outlier_tiles, layout.symmetric,           false,        false,
          layout.row_v};
}

Ring ring_of(const Part& part) { return part.keys ? Ring::key : Ring::value; }

// Calls work with the number of bits as a constant.
template <typename Work>
void with_bits(uint32_t bits, Work work) {
  visit_bits<has_blocks>(bits, work);
}
static_assert(row_of(Format::mixed).bits == kMixedBits);

// Of one token; the last tile's padding included.
template <uint32_t kBits>
using Codes = std::array<Code<kBits>, kMaxHeadDim>;

// Calls visit(bits as a constant, offset of the tile in its block, its first channel) for each tile but those of
// outliers.
template <uint32_t kBits, typename Visit>
void for_each_tile(const Part& part, Visit visit) {
  for (uint32_t t = part.n_outlier; t < part.n_tiles; ++t) {
    const auto visit_tile = [&](auto bits) { visit(bits, part.data + part.row.at[t], t * kTileSide); };
    if constexpr (kBits == kMixedBits) {
      visit_bits<has_mixed_tiles>(part.row.bits[t], visit_tile);
    } else {
      visit_tile(std::integral_constant<uint32_t, kBits>());
    }
  }
}

template <uint32_t kBits>
void write_codes(uint8_t* block, const Part& part, uint32_t token, const Codes<kBits>& codes) {
  for_each_tile<kBits>(part, [&](auto bits, size_t tile, uint32_t channel) {
    part.keys ? store_lane<bits>(block + tile, token, &codes[channel])
              : store_row<bits>(block + tile, token, &codes[channel]);
  });
}

template <uint32_t kBits>
void read_codes(const uint8_t* block, const Part& part, uint32_t token, Codes<kBits>& codes) {
  for_each_tile<kBits>(part, [&](auto bits, size_t tile, uint32_t channel) {
    part.keys ? load_lane<bits>(block + tile, token, &codes[channel])
              : load_row<bits>(block + tile, token, &codes[channel]);
  });
}

// The outlier tiles alone.
Part outlier_part_of(const Part& part) {
  Part outliers = part;
  outliers.dim = part.first_grouped();
  outliers.group = 0;
  outliers.n_tiles = std::exchange(outliers.n_outlier, 0);
  return outliers;
}

uint16_t* alphas(uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<uint16_t*>(block + part.scales + part.group_scale_bytes * group);
}
const uint16_t* alphas(const uint8_t* block, const Part& part, uint32_t group) {
  return reinterpret_cast<const uint16_t*>(block + part.scales + part.group_scale_bytes * group);
}

// What the codes of a channel's tokens stand for: alpha * code + beta.
struct ChannelScale {
  float alpha, beta;
};
ChannelScale channel_scale(const uint8_t* block, const Part& part, uint32_t channel) {
  const uint16_t* halves = alphas(block, part, channel / kTileSide) + channel % kTileSide;
  return {f16_to_f32(halves[0]), f16_to_f32(halves[kTileSide])};
}

template <uint32_t kBits>
void encode_part(uint8_t* block, const Part& part, uint32_t token, const float* values) {
  assert(!part.by_channel);
  Codes<kBits> codes;
  const uint32_t padded = part.n_tiles * kTileSide;
  std::fill(codes.begin() + part.dim, codes.begin() + padded, Code<kBits>{0});
  if constexpr (kBits == kMixedBits) {
    float padded_values[kMaxHeadDim];
    std::copy_n(values, part.dim, padded_values);
    std::fill(padded_values + part.dim, padded_values + padded, 0.0f);
    block[part.scales + token] = quantise_trellis(ring_of(part), padded_values, part.row.bits.data(),
                                                  part.row.weight.data(), part.n_tiles, codes.data());
  } else if constexpr (kBits == 16) {
    for (uint32_t c = 0; c < part.dim; ++c) codes[c] = f32_to_f16(values[c]);
  } else {
    if (part.n_outlier) encode_part<16>(block, outlier_part_of(part), token, values);
    for (uint32_t first = part.first_grouped(), group = 0; first < part.dim; first += part.group, ++group) {
      uint16_t* alpha = alphas(block, part, group);
      if (part.symmetric) {
        alpha[token] = quantise_symmetric(std::span(values + first, part.group), kBits, &codes[first]);
        continue;
      }
      const GroupScale scale = quantise_group(std::span(values + first, part.group), kBits, &codes[first]);
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
  if constexpr (kBits == kMixedBits) {
    const float alpha = scale8_to_f32(block[part.scales + token]);
    uint8_t levels[kMaxHeadDim];
    for (uint32_t t = 0; t < part.n_tiles; ++t) {
      ring_levels(ring_of(part), part.row.bits[t], &codes[t * kTileSide], levels + t * kTileSide);
    }
    for (uint32_t c = 0; c < part.dim; ++c) values[c] = alpha * (float(levels[c]) - kTrellisCentre);
  } else if constexpr (kBits == 16) {
    for (uint32_t c = 0; c < part.dim; ++c) values[c] = f16_to_f32(codes[c]);
  } else if (part.by_channel) {
    for (uint32_t c = 0; c < part.dim; ++c) {
      const ChannelScale scale = channel_scale(block, part, c);
      values[c] = scale.alpha * float(codes[c]) + scale.beta;
    }
  } else {
    if (part.n_outlier) decode_part<16>(block, outlier_part_of(part), token, values);
    for (uint32_t first = part.first_grouped(), group = 0; first < part.dim; first += part.group, ++group) {
      const uint16_t* alpha = alphas(block, part, group);
      const float step = f16_to_f32(alpha[token]);
      const float zero =
          part.symmetric ? -step * float(symmetric_zero(kBits)) : f16_to_f32(alpha[kBlockTokens + token]);
      for (uint32_t c = first; c < first + part.group; ++c) {
        values[c] = step * float(codes[c]) + zero;
      }
    }
  }
}

template <uint32_t kBits>
void copy_part(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const Part& part) {
  Codes<kBits> codes;
  read_codes<kBits>(from, part, from_lane, codes);
  write_codes<kBits>(to, part, to_lane, codes);
  if constexpr (kBits == kMixedBits) {
    to[part.scales + to_lane] = from[part.scales + from_lane];
    return;
  }
  if (part.by_channel) return;
  if constexpr (kBits != 16) {
    if (part.n_outlier) copy_part<16>(from, from_lane, to, to_lane, outlier_part_of(part));
  }
  const uint32_t groups = part.group ? (part.dim - part.first_grouped()) / part.group : 0;
  for (uint32_t group = 0; group < groups; ++group) {
    for (uint32_t half = 0; half < part.group_scale_bytes / sizeof(uint16_t); half += kBlockTokens) {
      alphas(to, part, group)[half + to_lane] = alphas(from, part, group)[half + from_lane];
    }
  }
}

}  // namespace

void encode_token(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k, const float* v) {
  encode_k(block, layout, lane, k);
  encode_v(block, layout, lane, v);
}

void encode_k(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* k) {
  with_bits(layout.bits, [&](auto bits) { encode_part<bits>(block, part_k(layout), lane, k); });
}

void encode_v(uint8_t* block, const BlockLayout& layout, uint32_t lane, const float* v) {
  with_bits(layout.bits, [&](auto bits) { encode_part<bits>(block, part_v(layout), lane, v); });
}

void encode_tokens(uint8_t* block, const BlockLayout& layout, const Transform& transform, uint32_t first, uint32_t n,
                   const float* k, const float* v) {
  std::array<uint8_t, size_t{kBlockTokens} * kMaxHeadDim> codes;
  const auto encode = [&](const Part& part, const Axes& axes, const float* values) {
    encode_kernels().encode(
        {ring_of(part), &axes, &part.row, values, n, part.dim, codes.data(), block + part.scales + first});
    for (uint32_t i = 0; i < n; ++i) {
      Codes<kMixedBits> of_token;
      std::copy_n(codes.begin() + i * part.n_tiles * kTileSide, part.n_tiles * kTileSide, of_token.begin());
      write_codes<kMixedBits>(block, part, first + i, of_token);
    }
  };
  encode(part_k(layout), transform.key, k);
  encode(part_v(layout), transform.value, v);
}

bool encodes_together() { return encode_kernels().faster; }

namespace {

using KeyRows = std::array<float, size_t{kBlockTokens} * kMaxHeadDim>;

// Least and largest value of each channel. What a damaged file gave is no number perhaps.
MIKV_FOR_EACH_CPU
void channel_ranges(const float* k, uint32_t n, uint32_t dim, float* __restrict low, float* __restrict high) {
  for (uint32_t c = 0; c < dim; ++c) low[c] = high[c] = finite_f16_range(k[c]);
  for (uint32_t i = 1; i < n; ++i) {
    for (uint32_t c = 0; c < dim; ++c) {
      const float x = finite_f16_range(k[size_t{i} * dim + c]);
      low[c] = x < low[c] ? x : low[c];
      high[c] = x > high[c] ? x : high[c];
    }
  }
}

MIKV_FOR_EACH_CPU
void channel_codes(const float* k, uint32_t dim, const float* beta, const float* inverse, float top,
                   uint8_t* __restrict codes) {
  for (uint32_t c = 0; c < dim; ++c) codes[c] = code_of(finite_f16_range(k[c]), beta[c], inverse[c], top);
}

template <uint32_t kBits>
void encode_keys_of(uint8_t* block, const Part& part, uint32_t n, const float* k) {
  std::array<float, kMaxHeadDim> low, high, beta, inverse;
  channel_ranges(k, n, part.dim, low.data(), high.data());
  for (uint32_t c = 0; c < part.dim; ++c) {
    const GroupScale scale = group_scale(low[c], high[c], kBits);
    uint16_t* halves = alphas(block, part, c / kTileSide) + c % kTileSide;
    halves[0] = scale.alpha;
    halves[kTileSide] = scale.beta;
    beta[c] = f16_to_f32(scale.beta);
    inverse[c] = inverse_step(f16_to_f32(scale.alpha));
  }
  Codes<kBits> codes{};
  for (uint32_t i = 0; i < n; ++i) {
    channel_codes(k + size_t{i} * part.dim, part.dim, beta.data(), inverse.data(), float((1u << kBits) - 1),
                  codes.data());
    write_codes<kBits>(block, part, i, codes);
  }
}

// Keys of the first n tokens of a block.
void decode_keys(const uint8_t* block, const BlockLayout& layout, uint32_t n, float* k) {
  for (uint32_t i = 0; i < n; ++i) decode_k(block, layout, i, k + size_t{i} * layout.dim_k);
}

}  // namespace

void encode_keys(uint8_t* block, const BlockLayout& layout, uint32_t n, const float* k) {
  assert(layout.keys_by_channel && n > 0 && n <= kBlockTokens);
  with_bits(layout.bits, [&](auto bits) {
    if constexpr (bits != 16 && bits != kMixedBits) encode_keys_of<bits>(block, part_k(layout), n, k);
  });
}

void add_tokens(uint8_t* block, const BlockLayout& layout, uint32_t first, uint32_t n, const float* k, const float* v) {
  assert(first + n <= kBlockTokens);
  KeyRows rows;
  decode_keys(block, layout, first, rows.data());
  std::copy_n(k, size_t{n} * layout.dim_k, rows.begin() + size_t{first} * layout.dim_k);
  encode_keys(block, layout, first + n, rows.data());
  for (uint32_t i = 0; i < n; ++i) encode_v(block, layout, first + i, v + size_t{i} * layout.dim_v);
}

bool has_finite_key_scales(const uint8_t* block, const BlockLayout& layout) {
  const std::span scales(alphas(block, part_k(layout), 0), (layout.scales_v - layout.scales_k) / sizeof(uint16_t));
  return std::ranges::all_of(scales, [](uint16_t half) { return std::isfinite(f16_to_f32(half)); });
}

void decode_k(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k) {
  with_bits(layout.bits, [&](auto bits) { decode_part<bits>(block, part_k(layout), lane, k); });
}

void decode_token(const uint8_t* block, const BlockLayout& layout, uint32_t lane, float* k, float* v) {
  decode_k(block, layout, lane, k);
  with_bits(layout.bits, [&](auto bits) { decode_part<bits>(block, part_v(layout), lane, v); });
}

void read_f16(const uint8_t* block, const BlockLayout& layout, uint32_t n, uint16_t* const* k_rows,
              uint16_t* const* v_rows) {
  const auto read = [&](const Part& part, uint16_t* const* rows) {
    for (uint32_t t = 0; t < part.n_tiles; ++t) {
      const uint32_t first = t * kTileSide, n_channels = std::min(kTileSide, part.dim - first);
      const uint16_t* tile = reinterpret_cast<const uint16_t*>(block + part.data + part.row.at[t]);
      for (uint32_t token = 0; token < n; ++token) {
        uint16_t* row = rows[token] + first;
        const uint16_t* from = part.keys ? tile + token : tile + size_t{token} * kTileSide;
        const uint32_t step = part.keys ? kTileSide : 1;
        for (uint32_t c = 0; c < n_channels; ++c) row[c] = from[c * step];
      }
    }
  };
  read(part_k(layout), k_rows);
  read(part_v(layout), v_rows);
}

namespace {

// To floats of halves in rows, f16_to_f32 of each.
MIKV_FOR_EACH_CPU
void to_floats(const uint16_t* halves, size_t n, float* floats) {
  for (size_t i = 0; i < n; ++i) floats[i] = f16_to_f32(halves[i]);
}

}  // namespace

void decode_f16(const uint8_t* block, const BlockLayout& layout, uint32_t n, float* k, float* v) {
  std::array<uint16_t, size_t{kBlockTokens} * kMaxHeadDim> k_halves, v_halves;
  std::array<uint16_t*, kBlockTokens> k_rows = {}, v_rows = {};
  for (uint32_t i = 0; i < n; ++i) {
    k_rows[i] = k_halves.data() + i * layout.dim_k;
    v_rows[i] = v_halves.data() + i * layout.dim_v;
  }
  read_f16(block, layout, n, k_rows.data(), v_rows.data());
  to_floats(k_halves.data(), size_t{n} * layout.dim_k, k);
  to_floats(v_halves.data(), size_t{n} * layout.dim_v, v);
}

void copy_token(const uint8_t* from, uint32_t from_lane, uint8_t* to, uint32_t to_lane, const BlockLayout& layout) {
  set_block_id(to, layout, to_lane, block_id(from, layout, from_lane));
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

void gather_tokens(std::span<const TokenAt> tokens, uint8_t* to, const BlockLayout& layout) {
  if (tokens.empty()) return;
  const uint8_t* first = tokens.front().block;
  const bool of_one = std::ranges::all_of(tokens, [first](const TokenAt& token) { return token.block == first; });
  const bool encodes = layout.keys_by_channel && !of_one;
  KeyRows rows;
  for (size_t i = 0; i < tokens.size() && encodes; ++i) {
    decode_k(tokens[i].block, layout, tokens[i].lane, rows.data() + i * layout.dim_k);
  }
  for (uint32_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].block != to || tokens[i].lane != i) copy_token(tokens[i].block, tokens[i].lane, to, i, layout);
  }
  if (encodes) {
    encode_keys(to, layout, uint32_t(tokens.size()), rows.data());
  } else if (layout.keys_by_channel && first != to) {
    std::memcpy(to + layout.scales_k, first + layout.scales_k, layout.scales_v - layout.scales_k);
  }
}

}  // namespace mikv::codec
