// Where the codes of a trellis ring stand (codec/trellis.hpp): shared by the search for one token and by that for many.
#pragma once

#include <array>
#include <cstdint>

#include "codec/tile.hpp"
#include "codec/trellis.hpp"

namespace mikv::codec {

/// The row or lane of each place of the ring, and how many places make a ring.
struct Places {
  std::array<uint8_t, kTileSide> at{};
  uint32_t length = kTileSide;
};

constexpr Places make_places(Ring ring, uint32_t bits) {
  Places places;
  if (ring == Ring::key && bits == 4) places.length = kTileSide / 2;
  const uint32_t quads = places.length / 4;  // of a ring
  for (uint32_t i = 0; i < kTileSide; ++i) {
    constexpr uint32_t kNibbles[] = {0, 2, 1, 3};  // of 1 bit: how bytes follow each other in a tile (codec/tile.hpp)
    const uint32_t at_byte = i % places.length / quads, quad = i / places.length * quads + i % quads;
    const uint32_t byte = bits == 1 ? kNibbles[at_byte] : at_byte;
    places.at[i] = uint8_t(ring == Ring::value ? i : 4 * quad + byte);
  }
  return places;
}

template <Ring kRing, uint32_t kBits>
inline constexpr Places kPlaces = make_places(kRing, kBits);

}  // namespace mikv::codec
