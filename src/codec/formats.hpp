// The table of formats. A row says how elements are stored; everything else about a format is derived from its row.
// visit_bits() turns a number of bits into a template argument. docs/extending.md says how to add a row.
//
// A code of N bits is stored in a tile of N bits (codec/tile.hpp). Tiles of 1, 2, 3, 4, 8 and 16 bits have a layout of
// their own, a plane. Any other width is split: its low bits fill one plane, its high bits another one after it.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

#include "mikv/spec.hpp"

namespace mikv::codec {

/// Where a format may be used.
enum FormatUse : uint8_t {
  kInHi = 1,     ///< the hi tier
  kInLo = 2,     ///< the lo tier
  kInMixed = 4,  ///< the tiles of lo=mixed, as trellis codes (codec/trellis.hpp)
};

struct FormatRow {
  std::string_view name;  ///< as in a spec; empty for widths that only `mixed` uses
  Format format;
  uint32_t bits;                  ///< per element, without scales; 0: none, or tiles differ
  uint32_t low_plane;             ///< bits of the first plane; equal to `bits` where the code is not split
  uint8_t uses;                   ///< FormatUse
  std::optional<Format> smaller;  ///< the format that a budget lowers it to
  std::string_view why;

  constexpr bool named() const { return !name.empty(); }
  constexpr bool used_in(FormatUse use) const { return (uses & use) != 0; }
  constexpr bool quantised() const { return named() && format != Format::evict && bits != 16; }
};

/// In the order of Format and of rising bits.
inline constexpr FormatRow kFormats[] = {
    {"evict", Format::evict, 0, 0, kInLo, {}, "the token is lost: what H2O and the others that evict do"},
    {"mixed", Format::mixed, 0, 0, kInLo, {}, "bits go to the channels that need them: the best quality for its size"},
    {"", Format::mixed, 1, 1, kInMixed, {}, "channels that hardly matter"},
    {"int2", Format::int2, 2, 2, kInHi | kInLo | kInMixed, {}, "the smallest with a usable error; wants the balancer"},
    {"int3", Format::int3, 3, 3, kInLo | kInMixed, Format::int2, "half the error of int2, for a bit more"},
    {"int4", Format::int4, 4, 4, kInHi | kInLo | kInMixed, Format::int3, "the retained tier of MiKV as published"},
    {"int5", Format::int5, 5, 4, kInHi | kInLo, Format::int4, "half the error of int4, where int8 does not fit"},
    {"", Format::mixed, 6, 4, kInMixed, {}, "channels of heads that look single tokens up"},
    // Its step down skips int4: a budget that cannot hold int8 lacks much.
    {"int8", Format::int8, 8, 8, kInHi | kInLo, Format::int3, "as good as f16 in the hi tier, at half its size"},
    {"f16", Format::f16, 16, 16, kInHi, {}, "as the engine gave it"},
};

/// The row of a format that specs can name.
constexpr const FormatRow& row_of(Format format) {
  size_t row = 0;
  while (!kFormats[row].named() || kFormats[row].format != format) ++row;
  return kFormats[row];
}

/// Rows whose number of bits a block can have (BlockLayout::bits): 0 stands for tiles that differ.
constexpr bool has_blocks(const FormatRow& row) { return row.named() && row.format != Format::evict; }
/// Rows whose number of bits a tile of `mixed` can have.
constexpr bool has_mixed_tiles(const FormatRow& row) { return row.used_in(kInMixed); }

/// Calls work(bits as a std::integral_constant) for the row with so many bits among those that kWanted takes. There
/// must be one. Inlined, so that callers compiled for several CPUs stay whole.
template <bool (*kWanted)(const FormatRow&), size_t kRow = 0, typename Work>
__attribute__((always_inline)) inline void visit_bits(uint32_t bits, const Work& work) {
  if constexpr (kRow == std::size(kFormats)) {
    assert(!"no such row in kFormats");
    __builtin_unreachable();
  } else {
    if constexpr (kWanted(kFormats[kRow])) {
      if (bits == kFormats[kRow].bits) return work(std::integral_constant<uint32_t, kFormats[kRow].bits>());
    }
    visit_bits<kWanted, kRow + 1>(bits, work);
  }
}

/// Bits of the first plane of a tile.
constexpr uint32_t low_plane_of(uint32_t bits) {
  for (const FormatRow& row : kFormats) {
    if (row.bits == bits) return row.low_plane;
  }
  return bits;
}
constexpr bool is_split(uint32_t bits) { return low_plane_of(bits) != bits; }

namespace detail {

/// Every format has one row; Format::f16 stays the last of its enumerators.
constexpr bool every_format_has_a_row() {
  for (uint32_t value = 0; value <= uint32_t(Format::f16); ++value) {
    uint32_t n_rows = 0;
    for (const FormatRow& row : kFormats) n_rows += row.named() && row.format == Format(value);
    if (n_rows != 1) return false;
  }
  return true;
}

constexpr bool rows_are_sound() {
  uint32_t last_bits = 0;
  for (const FormatRow& row : kFormats) {
    const bool tiles = row.bits > 0;
    if (tiles && row.bits <= last_bits) return false;
    if (tiles ? row.low_plane == 0 || row.low_plane > row.bits : row.used_in(kInHi)) return false;
    if (row.smaller && !(row_of(*row.smaller).used_in(kInLo) && row_of(*row.smaller).bits < row.bits)) return false;
    if (row.uses == 0 || row.why.empty()) return false;
    last_bits = row.bits > last_bits ? row.bits : last_bits;
  }
  return true;
}

}  // namespace detail
static_assert(detail::every_format_has_a_row());
static_assert(detail::rows_are_sound());

}  // namespace mikv::codec
