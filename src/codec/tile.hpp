// Tile: 16 x 16 codes of N bits, the one packed format of every tier; 32*N bytes.
//
// A tile has 16 lanes and 16 rows. For keys a lane is a token and a row is a channel, for values a lane is a channel
// and a row is a token, so that in both a kernel does the same thing: for each row, decode 16 lanes and multiply them by
// one number of each query head (query channel, or attention weight).
//
// Rows are stored in quads, four rows in the four bytes of a 32-bit word of each lane: quad j holds rows 4j..4j+3, row
// 4j+b in byte b. One shift and one mask therefore expose four rows of 16 lanes at once, as bytes, which is the operand of
// a byte dot product (VNNI); a shift by whole bytes more exposes a single row.
//
//   N    layout, from low address                                                        bytes
//   16   16 rows of 16 halves (no quads)                                                 512
//    8   4 quads of 16 u32                                                               256
//    4   2 x 16 u32: in each byte, quad 2w in the low and quad 2w+1 in the high nibble   128
//    3   16 u32: in each byte, quad 0 at bit 0, quad 1 at bit 3, the low two bits of
//        quad 2 at bit 6; then 16 u16: a nibble for each byte b, in the order 0 2 1 3,
//        with quad 3 at bit 0 and the high bit of quad 2 at bit 3                        96
//    2   16 u32: in each byte, quad j at bit 2*j                                         64
//
// The nibbles' order: n | n << 12 brings nibbles 0, 2, 1, 3 of a u16 n to the low half of bytes 0, 1, 2, 3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mikv::codec {

inline constexpr uint32_t kTileSide = 16;

constexpr size_t tile_bytes(uint32_t bits) { return size_t{32} * bits; }
static_assert(tile_bytes(16) == 512 && tile_bytes(3) == 16 * 4 + 16 * 2 && tile_bytes(2) == 16 * 4);

namespace detail {

template <typename Word>
inline Word load_word(const uint8_t* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

/// Replaces `width` bits at `shift` of the word at `at`.
template <typename Word>
inline void set_bits(uint8_t* at, uint32_t shift, uint32_t width, uint32_t value) {
  const Word mask = Word(((uint64_t{1} << width) - 1) << shift);
  const Word word = Word((load_word<Word>(at) & Word(~mask)) | Word(uint64_t{value} << shift));
  std::memcpy(at, &word, sizeof word);
}

template <typename Word>
inline uint32_t get_bits(const uint8_t* at, uint32_t shift, uint32_t width) {
  return uint32_t(uint64_t{load_word<Word>(at)} >> shift) & uint32_t((uint64_t{1} << width) - 1);
}

}  // namespace detail

/// Bit at which the nibble of byte b stands in the u16 of a 3-bit tile.
constexpr uint32_t nibble_shift(uint32_t b) { return 4 * (b == 1 ? 2 : b == 2 ? 1 : b); }

/// Writes one code (0 .. 2^bits-1; for 16 bits the half itself). row, lane < 16.
inline void set_code(uint8_t* tile, uint32_t bits, uint32_t row, uint32_t lane, uint32_t code) {
  using namespace detail;
  const uint32_t quad = row / 4, b = row % 4;
  switch (bits) {
    case 16: set_bits<uint16_t>(tile + 32 * row + 2 * lane, 0, 16, code); break;
    case 8: tile[64 * quad + 4 * lane + b] = uint8_t(code); break;
    case 4: set_bits<uint8_t>(tile + 64 * (quad / 2) + 4 * lane + b, 4 * (quad % 2), 4, code); break;
    case 3:
      if (quad < 2) {
        set_bits<uint8_t>(tile + 4 * lane + b, 3 * quad, 3, code);
      } else if (quad == 2) {
        set_bits<uint8_t>(tile + 4 * lane + b, 6, 2, code & 3);
        set_bits<uint16_t>(tile + 64 + 2 * lane, nibble_shift(b) + 3, 1, code >> 2);
      } else {
        set_bits<uint16_t>(tile + 64 + 2 * lane, nibble_shift(b), 3, code);
      }
      break;
    default: set_bits<uint8_t>(tile + 4 * lane + b, 2 * quad, 2, code); break;
  }
}

/// Reads one code; the inverse of set_code.
inline uint32_t get_code(const uint8_t* tile, uint32_t bits, uint32_t row, uint32_t lane) {
  using namespace detail;
  const uint32_t quad = row / 4, b = row % 4;
  switch (bits) {
    case 16: return get_bits<uint16_t>(tile + 32 * row + 2 * lane, 0, 16);
    case 8: return tile[64 * quad + 4 * lane + b];
    case 4: return get_bits<uint8_t>(tile + 64 * (quad / 2) + 4 * lane + b, 4 * (quad % 2), 4);
    case 3:
      if (quad < 2) return get_bits<uint8_t>(tile + 4 * lane + b, 3 * quad, 3);
      if (quad == 3) return get_bits<uint16_t>(tile + 64 + 2 * lane, nibble_shift(b), 3);
      return get_bits<uint8_t>(tile + 4 * lane + b, 6, 2) | get_bits<uint16_t>(tile + 64 + 2 * lane, nibble_shift(b) + 3, 1) << 2;
    default: return get_bits<uint8_t>(tile + 4 * lane + b, 2 * quad, 2);
  }
}

}  // namespace mikv::codec
