// Tile: 16 x 16 codes of N bits, the one packed format of every tier; 32*N bytes.
//
// A tile has 16 lanes and 16 rows. For keys a lane is a token and a row is a channel, for values a lane is a channel
// and a row is a token, so that in both a kernel does the same thing: for each row, decode 16 lanes and multiply them
// by one number of each query head (query channel, or attention weight).
//
// Rows are stored in quads, four rows in the four bytes of a 32-bit word of each lane: quad j holds rows 4j..4j+3, row
// 4j+b in byte b. One shift and one mask therefore expose four rows of 16 lanes at once, as bytes, which is the operand
// of a byte dot product (VNNI); a shift by whole bytes more exposes a single row.
//
// A token is written and read whole: as a lane of its key tiles, as a row of its value tiles. The words of a lane
// belong to its token alone, so a lane is a few shifts of four codes at once; a row shares words with other tokens.
//
//   N    layout, from low address                                                        bytes
//   16   16 rows of 16 halves (no quads)                                                 512
//    8   4 quads of 16 u32                                                               256
//    6   a tile of 4 bits with the low four of each code, then one of 2 with the high two  192
//    4   2 x 16 u32: in each byte, quad 2w in the low and quad 2w+1 in the high nibble   128
//    3   16 u32: in each byte, quad 0 at bit 0, quad 1 at bit 3, the low two bits of
//        quad 2 at bit 6; then 16 u16: a nibble for each byte b, in the order 0 2 1 3,
//        with the high bit of quad 2 at bit 0 and quad 3 at bit 1                        96
//    2   16 u32: in each byte, quad j at bit 2*j                                         64
//    1   16 u16: a nibble for each byte b, in the order 0 2 1 3, with quad j at bit j    32
//
// The nibbles' order: n | n << 12 brings nibbles 0, 2, 1, 3 of a u16 n to the low half of bytes 0, 1, 2, 3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mikv::codec {

inline constexpr uint32_t kTileSide = 16;

constexpr size_t tile_bytes(uint32_t bits) { return size_t{32} * bits; }
static_assert(tile_bytes(16) == 512 && tile_bytes(3) == 16 * 4 + 16 * 2 && tile_bytes(2) == 16 * 4 &&
              tile_bytes(1) == 16 * 2);

/// 0 .. 2^bits - 1; for 16 bits the half itself.
template <uint32_t kBits>
using Code = std::conditional_t<kBits == 16, uint16_t, uint8_t>;

/// Calls work with a number of bits, 1 to 4 or 6, as a constant. Inlined, so that callers compiled for several CPUs
/// stay whole.
template <typename Work>
__attribute__((always_inline)) inline void with_table_bits(uint32_t bits, Work work) {
  switch (bits) {
    case 1: return work(std::integral_constant<uint32_t, 1>());
    case 2: return work(std::integral_constant<uint32_t, 2>());
    case 3: return work(std::integral_constant<uint32_t, 3>());
    case 4: return work(std::integral_constant<uint32_t, 4>());
    default: return work(std::integral_constant<uint32_t, 6>());
  }
}

namespace detail {

template <typename Word>
inline Word load_word(const void* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

template <typename Word>
inline void store_word(void* at, Word word) {
  std::memcpy(at, &word, sizeof word);
}

/// The same bits of four bytes.
constexpr uint32_t in_bytes(uint32_t bits) { return bits * 0x01010101u; }

/// Bit at which the nibble of byte b stands in the u16 of a 3-bit or 1-bit tile.
constexpr uint32_t nibble_shift(uint32_t b) { return 4 * (b == 1 ? 2 : b == 2 ? 1 : b); }

/// Of 16 words: bits [shift, shift + width) become bits [from, from + width) of the codes.
template <typename Word>
inline void put_bits(uint8_t* words, uint32_t shift, uint32_t width, const uint8_t* codes, uint32_t from) {
  Word word[kTileSide];
  std::memcpy(word, words, sizeof word);
  const Word mask = Word((1u << width) - 1), keep = Word(~(mask << shift));
  for (uint32_t i = 0; i < kTileSide; ++i) word[i] = Word((word[i] & keep) | Word(codes[i] >> from & mask) << shift);
  std::memcpy(words, word, sizeof word);
}

/// The opposite: adds bits [shift, shift + width) of 16 words to the codes at bit `to`.
template <typename Word>
inline void add_bits(const uint8_t* words, uint32_t shift, uint32_t width, uint8_t* codes, uint32_t to) {
  Word word[kTileSide];
  std::memcpy(word, words, sizeof word);
  const Word mask = Word((1u << width) - 1);
  for (uint32_t i = 0; i < kTileSide; ++i) codes[i] = uint8_t(codes[i] | (word[i] >> shift & mask) << to);
}

}  // namespace detail

/// Writes the 16 codes of a lane, in the order of rows. lane < 16.
template <uint32_t kBits>
inline void store_lane(uint8_t* tile, uint32_t lane, const Code<kBits>* codes) {
  using namespace detail;
  if constexpr (kBits == 16) {
    for (uint32_t row = 0; row < kTileSide; ++row) store_word(tile + 32 * row + 2 * lane, codes[row]);
    return;
  }
  if constexpr (kBits == 6) {
    uint8_t low[kTileSide], high[kTileSide];
    for (uint32_t row = 0; row < kTileSide; ++row) low[row] = codes[row] & 15, high[row] = codes[row] >> 4;
    store_lane<4>(tile, lane, low);
    return store_lane<2>(tile + tile_bytes(4), lane, high);
  }
  uint32_t quad[4];
  std::memcpy(quad, codes, sizeof quad);
  uint8_t* word = tile + 4 * lane;
  switch (kBits) {
    case 8:
      for (uint32_t j = 0; j < 4; ++j) store_word(word + 64 * j, quad[j]);
      break;
    case 4:
      for (uint32_t j = 0; j < 2; ++j) store_word(word + 64 * j, quad[2 * j] | quad[2 * j + 1] << 4);
      break;
    case 3: {
      store_word(word, quad[0] | quad[1] << 3 | (quad[2] & in_bytes(3)) << 6);
      const uint32_t nibbles = (quad[2] >> 2 & in_bytes(1)) | quad[3] << 1;
      store_word(tile + 64 + 2 * lane, uint16_t(nibbles | nibbles >> 12));
      break;
    }
    case 2: store_word(word, quad[0] | quad[1] << 2 | quad[2] << 4 | quad[3] << 6); break;
    default: {
      const uint32_t nibbles = quad[0] | quad[1] << 1 | quad[2] << 2 | quad[3] << 3;
      store_word(tile + 2 * lane, uint16_t(nibbles | nibbles >> 12));
    }
  }
}

/// The inverse of store_lane.
template <uint32_t kBits>
inline void load_lane(const uint8_t* tile, uint32_t lane, Code<kBits>* codes) {
  using namespace detail;
  if constexpr (kBits == 16) {
    for (uint32_t row = 0; row < kTileSide; ++row) codes[row] = load_word<uint16_t>(tile + 32 * row + 2 * lane);
    return;
  }
  if constexpr (kBits == 6) {
    uint8_t high[kTileSide];
    load_lane<4>(tile, lane, codes);
    load_lane<2>(tile + tile_bytes(4), lane, high);
    for (uint32_t row = 0; row < kTileSide; ++row) codes[row] = uint8_t(codes[row] | high[row] << 4);
    return;
  }
  uint32_t quad[4];
  const uint8_t* word = tile + (kBits == 1 ? 2 : 4) * lane;
  const uint32_t first = kBits == 1 ? load_word<uint16_t>(word) : load_word<uint32_t>(word);
  switch (kBits) {
    case 8:
      for (uint32_t j = 0; j < 4; ++j) quad[j] = load_word<uint32_t>(word + 64 * j);
      break;
    case 4:
      for (uint32_t j = 0; j < 4; ++j) quad[j] = load_word<uint32_t>(word + 64 * (j / 2)) >> 4 * (j % 2) & in_bytes(15);
      break;
    case 3: {
      const uint32_t packed = load_word<uint16_t>(tile + 64 + 2 * lane), nibbles = packed | packed << 12;
      quad[0] = first & in_bytes(7);
      quad[1] = first >> 3 & in_bytes(7);
      quad[2] = (first >> 6 & in_bytes(3)) | (nibbles & in_bytes(1)) << 2;
      quad[3] = nibbles >> 1 & in_bytes(7);
      break;
    }
    case 2:
      for (uint32_t j = 0; j < 4; ++j) quad[j] = first >> 2 * j & in_bytes(3);
      break;
    default:
      for (uint32_t j = 0; j < 4; ++j) quad[j] = (first | first << 12) >> j & in_bytes(1);
      break;
  }
  std::memcpy(codes, quad, sizeof quad);
}

namespace detail {

/// Calls visit(word type, byte offset, shift, width, from) for each run of bits in which a row's codes stand: bits
/// [from, from + width) of a code at [shift, shift + width) of its lane's word. kBits < 16, row < 16.
template <uint32_t kBits, typename Visit>
inline void for_each_piece_of_row(uint32_t row, Visit visit) {
  if constexpr (kBits == 6) {
    for_each_piece_of_row<4>(row, visit);
    return for_each_piece_of_row<2>(row, [&](auto word, uint32_t offset, uint32_t shift, uint32_t width, uint32_t) {
      visit(word, uint32_t(tile_bytes(4)) + offset, shift, width, 4u);
    });
  }
  const uint32_t quad = row / 4, b = row % 4;
  const uint32_t u32{};
  const uint16_t u16{};
  switch (kBits) {
    case 8: return visit(u32, 64 * quad, 8 * b, 8u, 0u);
    case 4: return visit(u32, 64 * (quad / 2), 8 * b + 4 * (quad % 2), 4u, 0u);
    case 2: return visit(u32, 0u, 8 * b + 2 * quad, 2u, 0u);
    case 1: return visit(u16, 0u, nibble_shift(b) + quad, 1u, 0u);
    default: break;
  }
  if (quad < 2) return visit(u32, 0u, 8 * b + 3 * quad, 3u, 0u);
  if (quad == 3) return visit(u16, 64u, nibble_shift(b) + 1, 3u, 0u);
  visit(u32, 0u, 8 * b + 6, 2u, 0u);
  visit(u16, 64u, nibble_shift(b), 1u, 2u);
}

}  // namespace detail

/// Writes the 16 codes of a row, in the order of lanes. row < 16.
template <uint32_t kBits>
inline void store_row(uint8_t* tile, uint32_t row, const Code<kBits>* codes) {
  if constexpr (kBits == 16) {
    std::memcpy(tile + 32 * row, codes, 32);
  } else {
    detail::for_each_piece_of_row<kBits>(
        row, [&](auto word, uint32_t offset, uint32_t shift, uint32_t width, uint32_t from) {
          detail::put_bits<decltype(word)>(tile + offset, shift, width, codes, from);
        });
  }
}

/// The inverse of store_row.
template <uint32_t kBits>
inline void load_row(const uint8_t* tile, uint32_t row, Code<kBits>* codes) {
  if constexpr (kBits == 16) {
    std::memcpy(codes, tile + 32 * row, 32);
  } else {
    std::memset(codes, 0, kTileSide);
    detail::for_each_piece_of_row<kBits>(row,
                                         [&](auto word, uint32_t offset, uint32_t shift, uint32_t width, uint32_t to) {
                                           detail::add_bits<decltype(word)>(tile + offset, shift, width, codes, to);
                                         });
  }
}

}  // namespace mikv::codec
