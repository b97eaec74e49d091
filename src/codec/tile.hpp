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
//    4   2 x 16 u32: in each byte, quad 2w in the low and quad 2w+1 in the high nibble   128
//    3   16 u32: in each byte, quad 0 at bit 0, quad 1 at bit 3, the low two bits of
//        quad 2 at bit 6; then 16 u16: a nibble for each byte b, in the order 0 2 1 3,
//        with the high bit of quad 2 at bit 0 and quad 3 at bit 1                        96
//    2   16 u32: in each byte, quad j at bit 2*j                                         64
//    1   16 u16: a nibble for each byte b, in the order 0 2 1 3, with quad j at bit j    32
//   a+b  a tile of a bits with the low bits of each code, then one of b with the high    32*(a+b)
//        ones; e.g. 6 = 4+2 (FormatRow::low_plane)
//
// The nibbles' order: n | n << 12 brings nibbles 0, 2, 1, 3 of a u16 n to the low half of bytes 0, 1, 2, 3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "codec/formats.hpp"

namespace mikv::codec {

inline constexpr uint32_t kTileSide = 16;

constexpr size_t tile_bytes(uint32_t bits) { return size_t{32} * bits; }
static_assert(tile_bytes(16) == 512 && tile_bytes(3) == 16 * 4 + 16 * 2 && tile_bytes(2) == 16 * 4 &&
              tile_bytes(1) == 16 * 2);

/// 0 .. 2^bits - 1; for 16 bits the half itself.
template <uint32_t kBits>
using Code = std::conditional_t<kBits == 16, uint16_t, uint8_t>;

/// Where bits [from, from + width) of the codes of a quad stand: at bit `shift` of each byte of the lane's u32 `word`,
/// or of each nibble of its u16.
struct Piece {
  uint8_t word = 0, shift = 0, width = 0, from = 0;  // width 0: none
};

/// The layout of a tile whose codes are not split. Word w of lane 0 stands at byte 64 * w.
struct Plane {
  uint32_t bits;
  uint32_t n_words;  ///< of a lane
  bool last_is_u16;  ///< nibbles; the other words are u32
  Piece quads[4][2];

  constexpr bool is_u16(uint32_t word) const { return last_is_u16 && word + 1 == n_words; }
};

inline constexpr Plane kPlanes[] = {
    {1, 1, true, {{{0, 0, 1, 0}}, {{0, 1, 1, 0}}, {{0, 2, 1, 0}}, {{0, 3, 1, 0}}}},
    {2, 1, false, {{{0, 0, 2, 0}}, {{0, 2, 2, 0}}, {{0, 4, 2, 0}}, {{0, 6, 2, 0}}}},
    {3, 2, true, {{{0, 0, 3, 0}}, {{0, 3, 3, 0}}, {{0, 6, 2, 0}, {1, 0, 1, 2}}, {{1, 1, 3, 0}}}},
    {4, 2, false, {{{0, 0, 4, 0}}, {{0, 4, 4, 0}}, {{1, 0, 4, 0}}, {{1, 4, 4, 0}}}},
    {8, 4, false, {{{0, 0, 8, 0}}, {{1, 0, 8, 0}}, {{2, 0, 8, 0}}, {{3, 0, 8, 0}}}},
};

/// The plane of so many bits; a width without one does not compile.
consteval Plane plane_of(uint32_t bits) {
  for (const Plane& plane : kPlanes) {
    if (plane.bits == bits) return plane;
  }
  throw "no plane has so many bits: give its row in kFormats another low_plane";
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
  } else if constexpr (is_split(kBits)) {
    constexpr uint32_t kLow = low_plane_of(kBits);
    uint8_t low[kTileSide], high[kTileSide];
    for (uint32_t row = 0; row < kTileSide; ++row) {
      low[row] = codes[row] & ((1u << kLow) - 1), high[row] = uint8_t(codes[row] >> kLow);
    }
    store_lane<kLow>(tile, lane, low);
    store_lane<kBits - kLow>(tile + tile_bytes(kLow), lane, high);
  } else {
    constexpr Plane kPlane = plane_of(kBits);
    uint32_t quad[4], words[kPlane.n_words] = {};
    std::memcpy(quad, codes, sizeof quad);
    for (uint32_t j = 0; j < 4; ++j) {
      for (const Piece& piece : kPlane.quads[j]) {
        words[piece.word] |= (quad[j] >> piece.from & in_bytes((1u << piece.width) - 1)) << piece.shift;
      }
    }
    for (uint32_t w = 0; w < kPlane.n_words; ++w) {
      kPlane.is_u16(w) ? store_word(tile + 64 * w + 2 * lane, uint16_t(words[w] | words[w] >> 12))
                       : store_word(tile + 64 * w + 4 * lane, words[w]);
    }
  }
}

/// The inverse of store_lane.
template <uint32_t kBits>
inline void load_lane(const uint8_t* tile, uint32_t lane, Code<kBits>* codes) {
  using namespace detail;
  if constexpr (kBits == 16) {
    for (uint32_t row = 0; row < kTileSide; ++row) codes[row] = load_word<uint16_t>(tile + 32 * row + 2 * lane);
  } else if constexpr (is_split(kBits)) {
    constexpr uint32_t kLow = low_plane_of(kBits);
    uint8_t high[kTileSide];
    load_lane<kLow>(tile, lane, codes);
    load_lane<kBits - kLow>(tile + tile_bytes(kLow), lane, high);
    for (uint32_t row = 0; row < kTileSide; ++row) codes[row] = uint8_t(codes[row] | high[row] << kLow);
  } else {
    constexpr Plane kPlane = plane_of(kBits);
    uint32_t quad[4] = {}, words[kPlane.n_words];
    for (uint32_t w = 0; w < kPlane.n_words; ++w) {
      const uint8_t* word = tile + 64 * w;
      const uint32_t u16 = kPlane.is_u16(w) ? load_word<uint16_t>(word + 2 * lane) : 0;
      words[w] = kPlane.is_u16(w) ? u16 | u16 << 12 : load_word<uint32_t>(word + 4 * lane);
    }
    for (uint32_t j = 0; j < 4; ++j) {
      for (const Piece& piece : kPlane.quads[j]) {
        quad[j] |= (words[piece.word] >> piece.shift & in_bytes((1u << piece.width) - 1)) << piece.from;
      }
    }
    std::memcpy(codes, quad, sizeof quad);
  }
}

namespace detail {

/// Calls visit(word type, byte offset, shift, width, from) for each run of bits in which a row's codes stand: bits
/// [from, from + width) of a code at [shift, shift + width) of its lane's word. kBits < 16, row < 16.
template <uint32_t kBits, typename Visit>
inline void for_each_piece_of_row(uint32_t row, Visit visit) {
  if constexpr (is_split(kBits)) {
    constexpr uint32_t kLow = low_plane_of(kBits);
    for_each_piece_of_row<kLow>(row, visit);
    for_each_piece_of_row<kBits - kLow>(row,
                                        [&](auto word, uint32_t offset, uint32_t shift, uint32_t width, uint32_t from) {
                                          visit(word, uint32_t(tile_bytes(kLow)) + offset, shift, width, kLow + from);
                                        });
  } else {
    static constexpr Plane kPlane = plane_of(kBits);
    const uint32_t b = row % 4;
    for (const Piece& piece : kPlane.quads[row / 4]) {
      if (piece.width == 0) continue;
      const uint32_t offset = 64u * piece.word;
      kPlane.is_u16(piece.word) ? visit(uint16_t{}, offset, nibble_shift(b) + piece.shift, piece.width, piece.from)
                                : visit(uint32_t{}, offset, 8 * b + piece.shift, piece.width, piece.from);
    }
  }
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
