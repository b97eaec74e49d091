// Trellis codes: the 16 codes that a token has in a tile of mixed bits form a ring, and what a code stands for is read
// from a table by a window that begins at the code and extends into those after it:
//
//   level i = table[(c_i | c_(i+1) << b | c_(i+2) << 2b | ...) mod 2^window]          b bits per code
//
// A value can so be met by one of 64 levels although it costs 1 to 4 bits: "trellis coded quantisation" (M. Marcellin
// and T. Fischer, 1990; as a ring, "tail-biting"), with a bit-shift window (as in QTIP, arXiv 2406.11235). Of normally
// distributed values it loses a quarter to a third less than the best levels without memory, which would take a quarter
// of a bit more. Decoding stays one table lookup: codes are stored such that a shift or two bring the whole window into
// place.
//
//   keys     a token's codes fill its lane's word, so that the window is what stands above the code:
//            1, 2, 3 bits: i = 4 byte + quad; 4 bits: two rings of 8 codes, quads 0 and 1, and quads 2 and 3
//   values   codes stand in the same bits of the 16 lanes: i = lane, and a window is the code and the next lane's
//
//   bits                1        2        3        4        6
//   window of keys      5        6        6        6        6
//   window of values    2        4        6        6        6
//
// With 6 bits a code is its whole window, and there is no ring: for channels of heads that look tokens up.
#pragma once

#include <array>
#include <cstdint>

#include "codec/tile.hpp"
#include "codec/trellis_levels.hpp"

namespace mikv::codec {

/// True if a tile of lo=mixed may have this many bits (kFormats).
constexpr bool is_tile_bits(uint32_t bits) {
  for (const FormatRow& row : kFormats) {
    if (has_mixed_tiles(row) && row.bits == bits) return true;
  }
  return false;
}
inline constexpr uint32_t kMaxTileBits = [] {
  uint32_t most = 0;
  for (const FormatRow& row : kFormats) most = has_mixed_tiles(row) ? row.bits : most;  // bits rise from row to row
  return most;
}();
/// The next larger number of bits that a tile can have. bits < kMaxTileBits.
constexpr uint32_t next_tile_bits(uint32_t bits) {
  do ++bits;
  while (!is_tile_bits(bits));
  return bits;
}
enum class Ring : uint8_t { key, value };

constexpr uint32_t window_bits(Ring ring, uint32_t bits) {
  constexpr uint32_t kKey[] = {0, 5, 6, 6, 6, 6, 6}, kValue[] = {0, 2, 4, 6, 6, 6, 6};
  return ring == Ring::key ? kKey[bits] : kValue[bits];
}
constexpr const Levels& trellis_levels(Ring ring, uint32_t bits) {
  if (bits == 6) return kLevels6;
  return ring == Ring::key ? kKeyLevels[bits - 1] : kValueLevels[bits - 1];
}

/// Mean squared error of normally distributed values at 0 (no code at all) to 6 bits, in variances, as encode_ring()
/// leaves it.
inline constexpr double kKeyError[kMaxTileBits + 1] = {1.0, 0.343, 0.0873, 0.0231, 0.0071, 0.0071, 0.0010};
inline constexpr double kValueError[kMaxTileBits + 1] = {1.0, 0.343, 0.0926, 0.0232, 0.0069, 0.0069, 0.0010};
constexpr double trellis_error(Ring ring, uint32_t bits) {
  return ring == Ring::key ? kKeyError[bits] : kValueError[bits];
}

/// Codes of x[16] whose levels come nearest to x * inverse in squares, found by Viterbi's algorithm. codes, levels:
/// [16], in the order of x: rows of a key tile, lanes of a value tile. is_tile_bits(bits).
void encode_ring(Ring ring, uint32_t bits, const float* x, float inverse, uint8_t* codes, uint8_t* levels);

/// The levels that codes[16] stand for.
void ring_levels(Ring ring, uint32_t bits, const uint8_t* codes, uint8_t* levels);

/// Quantises a head's part of a token under one scale, x' = alpha (level - 127.5), tile t with bits[t]. The scale
/// begins as the root mean square and ends as the least-squares one of the codes, weights[t] per element.
/// values[n_tiles
/// * 16], 0 beyond the head's channels; codes: as many. Returns the scale as a byte (codec/scale8.hpp).
uint8_t quantise_trellis(Ring ring, const float* values, const uint8_t* bits, const float* weights, uint32_t n_tiles,
                         uint8_t* codes);

}  // namespace mikv::codec
