// Levels: the numbers that codes stand for, as bytes. Kernels decode through a table of 64, so that every codebook
// costs them the same. Uniform levels are the codes themselves (Eq. 1 of MiKV), x' = alpha * code + beta; those of
// mixed bits are in codec/trellis_levels.hpp.
#pragma once

#include <array>
#include <cstdint>

namespace mikv::codec {

/// What six bits stand for. A table for fewer repeats, so that any bits may stand above them.
using Levels = std::array<uint8_t, 64>;

constexpr Levels make_uniform_levels(uint32_t bits) {
  Levels levels{};
  for (uint32_t i = 0; i < levels.size(); ++i) levels[i] = uint8_t(i & ((1u << bits) - 1));
  return levels;
}

template <uint32_t kBits>
  requires(kBits <= 6)
inline constexpr Levels kUniformLevels = make_uniform_levels(kBits);

}  // namespace mikv::codec
