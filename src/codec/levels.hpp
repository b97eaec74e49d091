// Levels: the numbers that the codes of 2 to 4 bits stand for, as bytes: x' = alpha * level[code] + beta.
//
// Kernels decode through this table, so every codebook costs them the same. Uniform levels are the codes themselves (Eq. 1
// of MiKV). Gaussian levels are those that lose least of normally distributed values (J. Max, "Quantizing for minimum
// distortion", 1960, table I), which is what a Hadamard rotation makes of a head; the outermost stand for the group's
// extremes.
#pragma once

#include <array>
#include <cstdint>

namespace mikv::codec {

enum class Codebook : uint8_t { uniform, gaussian };

/// level[i] belongs to code i % 2^bits: a table that repeats takes codes with any bits above them, up to the sixth.
using Levels = std::array<uint8_t, 64>;

/// bits 2, 3 or 4; for 8 and 16 bits no table is used, and all levels are 0.
constexpr Levels make_levels(uint32_t bits, Codebook codebook) {
  Levels levels{};
  if (bits > 4) return levels;
  // In standard deviations, the positive half.
  constexpr double kGaussian2[] = {0.4528, 1.510}, kGaussian3[] = {0.2451, 0.7560, 1.344, 2.152},
                   kGaussian4[] = {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733};
  const double* positive = bits == 2 ? kGaussian2 : bits == 3 ? kGaussian3 : kGaussian4;
  const uint32_t n = 1u << bits, half = n / 2;
  for (uint32_t code = 0; code < n; ++code) {
    const uint32_t outwards = code < half ? half - 1 - code : code - half;
    const uint32_t below_centre = uint32_t(127.5 - 127.5 * positive[outwards] / positive[half - 1] + 0.5);
    levels[code] = uint8_t(codebook == Codebook::uniform ? code : code < half ? below_centre : 255 - below_centre);
  }
  for (uint32_t i = n; i < levels.size(); ++i) levels[i] = levels[i - n];
  return levels;
}
static_assert(make_levels(3, Codebook::uniform)[7] == 7 && make_levels(3, Codebook::uniform)[8] == 0);
static_assert(make_levels(4, Codebook::gaussian)[0] == 0 && make_levels(4, Codebook::gaussian)[15] == 255);

}  // namespace mikv::codec
