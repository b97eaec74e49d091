// Levels: the numbers that the codes of 1 to 4 bits stand for, as bytes. Kernels decode through this table, so every
// codebook costs them the same.
//
// Uniform levels are the codes themselves (Eq. 1 of MiKV): x' = alpha * code + beta.
// Gaussian levels are those that lose least of normally distributed values (J. Max, "Quantizing for minimum distortion",
// 1960, table I), which is what a Hadamard rotation makes of a head. They lie symmetrically around 127.5, and for all
// numbers of bits a unit is the same share of a standard deviation, so that tiles of different bits share one alpha:
// x' = alpha * (level - 127.5). Rounding a level to a byte moves it by .011 of a standard deviation at most, which adds less
// than a hundredth to the error of 4 bits.
#pragma once

#include <array>
#include <cstdint>

namespace mikv::codec {

enum class Codebook : uint8_t { uniform, gaussian };

inline constexpr uint32_t kMaxTableBits = 4;
/// Where gaussian levels are 0.
inline constexpr float kGaussianCentre = 127.5f;
/// Standard deviations a unit of gaussian levels: the outermost of 4 bits, 2.733, is 127.5 of them.
inline constexpr float kGaussianUnit = 2.733f / 127.5f;
/// Mean squared error of the gaussian levels of 0 (no code at all) to 4 bits, in variances (J. Max, table I).
inline constexpr double kGaussianError[kMaxTableBits + 1] = {1.0, 0.3634, 0.1175, 0.03454, 0.009497};

/// level[i] belongs to code i % 2^bits: a table that repeats takes codes with any bits above them, up to the sixth.
using Levels = std::array<uint8_t, 64>;

constexpr Levels make_levels(uint32_t bits, Codebook codebook) {
  // In standard deviations, the positive half.
  constexpr double k1[] = {0.7979}, k2[] = {0.4528, 1.510}, k3[] = {0.2451, 0.7560, 1.344, 2.152},
                   k4[] = {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733};
  const double* positive = bits == 1 ? k1 : bits == 2 ? k2 : bits == 3 ? k3 : k4;
  const uint32_t n = 1u << bits, half = n / 2;
  Levels levels{};
  for (uint32_t code = 0; code < n; ++code) {
    const uint32_t outwards = code < half ? half - 1 - code : code - half;
    const uint32_t below_centre = uint32_t(127.5 - positive[outwards] * (127.5 / 2.733) + 0.5);
    levels[code] = uint8_t(codebook == Codebook::uniform ? code : code < half ? below_centre : 255 - below_centre);
  }
  for (uint32_t i = n; i < levels.size(); ++i) levels[i] = levels[i - n];
  return levels;
}

/// The table of a codebook; bits 1 to 4, others get that of 1.
inline const Levels& levels_of(Codebook codebook, uint32_t bits) {
  static constexpr std::array<std::array<Levels, kMaxTableBits + 1>, 2> kTables = [] {
    std::array<std::array<Levels, kMaxTableBits + 1>, 2> tables{};
    for (const Codebook book : {Codebook::uniform, Codebook::gaussian}) {
      for (uint32_t b = 0; b <= kMaxTableBits; ++b) tables[size_t(book)][b] = make_levels(b ? b : 1, book);
    }
    return tables;
  }();
  return kTables[size_t(codebook)][bits <= kMaxTableBits ? bits : 0];
}

static_assert(make_levels(3, Codebook::uniform)[7] == 7 && make_levels(3, Codebook::uniform)[8] == 0);
static_assert(make_levels(4, Codebook::gaussian)[0] == 0 && make_levels(4, Codebook::gaussian)[15] == 255);
static_assert(make_levels(1, Codebook::gaussian)[0] + make_levels(1, Codebook::gaussian)[1] == 255);

}  // namespace mikv::codec
