// Tile: 16 x 16 codes of N bits, the one packed format of every tier; 32*N bytes.
//
// A tile has 16 lanes and 16 rows. For keys a lane is a token and a row is a channel, for values a lane is a channel
// and a row is a token, so that in both a kernel does the same thing: for each row, decode 16 lanes and multiply them by
// one number of each query head (query channel, or attention weight).
//
//   N    layout, from low address                                              bytes
//   16   16 rows of 16 halves                                                  512
//    8   16 rows of 16 bytes                                                   256
//    4   2 rows of 16 u32: word w holds rows 8w..8w+7, row r at bit 4*(r%8)    128
//    3   16 u32: rows 0..9 at bit 3*r, bits 30..31 the low bits of row 15;
//        16 u16: rows 10..14 at bit 3*(r-10), bit 15 the high bit of row 15     96
//    2   16 u32: row r at bit 2*r                                               64
//
// Words are lane-interleaved: one load brings the words of all 16 lanes, and one shift exposes a row.
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

/// Writes one code (0 .. 2^bits-1; for 16 bits the half itself). row, lane < 16.
inline void set_code(uint8_t* tile, uint32_t bits, uint32_t row, uint32_t lane, uint32_t code) {
  using namespace detail;
  switch (bits) {
    case 16: set_bits<uint16_t>(tile + 32 * row + 2 * lane, 0, 16, code); break;
    case 8: tile[16 * row + lane] = uint8_t(code); break;
    case 4: set_bits<uint32_t>(tile + 64 * (row / 8) + 4 * lane, 4 * (row % 8), 4, code); break;
    case 3:
      if (row < 10) {
        set_bits<uint32_t>(tile + 4 * lane, 3 * row, 3, code);
      } else if (row < 15) {
        set_bits<uint16_t>(tile + 64 + 2 * lane, 3 * (row - 10), 3, code);
      } else {
        set_bits<uint32_t>(tile + 4 * lane, 30, 2, code & 3);
        set_bits<uint16_t>(tile + 64 + 2 * lane, 15, 1, code >> 2);
      }
      break;
    default: set_bits<uint32_t>(tile + 4 * lane, 2 * row, 2, code); break;
  }
}

/// Reads one code; the inverse of set_code.
inline uint32_t get_code(const uint8_t* tile, uint32_t bits, uint32_t row, uint32_t lane) {
  using namespace detail;
  switch (bits) {
    case 16: return get_bits<uint16_t>(tile + 32 * row + 2 * lane, 0, 16);
    case 8: return tile[16 * row + lane];
    case 4: return get_bits<uint32_t>(tile + 64 * (row / 8) + 4 * lane, 4 * (row % 8), 4);
    case 3:
      if (row < 10) return get_bits<uint32_t>(tile + 4 * lane, 3 * row, 3);
      if (row < 15) return get_bits<uint16_t>(tile + 64 + 2 * lane, 3 * (row - 10), 3);
      return get_bits<uint32_t>(tile + 4 * lane, 30, 2) | get_bits<uint16_t>(tile + 64 + 2 * lane, 15, 1) << 2;
    default: return get_bits<uint32_t>(tile + 4 * lane, 2 * row, 2);
  }
}

}  // namespace mikv::codec
