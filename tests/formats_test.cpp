// The table of formats: every row packs and unpacks, and the ladder of a budget ends. A row that is added is met here
// without a word in this file.
#include "codec/formats.hpp"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "codec/tile.hpp"
#include "test_data.hpp"

namespace mikv::codec {
namespace {

constexpr bool has_tiles(const FormatRow& row) { return row.bits > 0; }

template <uint32_t kBits>
using Square = std::array<std::array<Code<kBits>, kTileSide>, kTileSide>;

template <uint32_t kBits>
Square<kBits> random_codes(test::Random& random) {
  Square<kBits> codes;
  for (auto& lane : codes) {
    for (auto& code : lane) code = Code<kBits>(random.below(1u << kBits));
  }
  return codes;
}

TEST(FormatsTest, LanesAndRowsOfEveryWidthAreTheSameTile) {
  test::Random random(90);
  for (const FormatRow& row : kFormats) {
    if (!has_tiles(row)) continue;
    SCOPED_TRACE(row.bits);
    visit_bits<has_tiles>(row.bits, [&](auto bits) {
      const Square<bits> codes = random_codes<bits>(random);
      std::vector<uint8_t> by_lane(tile_bytes(bits)), by_row(tile_bytes(bits));
      for (uint32_t lane = 0; lane < kTileSide; ++lane) store_lane<bits>(by_lane.data(), lane, codes[lane].data());
      for (uint32_t r = 0; r < kTileSide; ++r) {
        std::array<Code<bits>, kTileSide> across;
        for (uint32_t lane = 0; lane < kTileSide; ++lane) across[lane] = codes[lane][r];
        store_row<bits>(by_row.data(), r, across.data());
        std::array<Code<bits>, kTileSide> loaded;
        load_row<bits>(by_lane.data(), r, loaded.data());
        EXPECT_EQ(loaded, across) << "row " << r;
      }
      EXPECT_EQ(by_lane, by_row);
      for (uint32_t lane = 0; lane < kTileSide; ++lane) {
        std::array<Code<bits>, kTileSide> loaded;
        load_lane<bits>(by_row.data(), lane, loaded.data());
        EXPECT_EQ(loaded, codes[lane]) << "lane " << lane;
      }
    });
  }
}

TEST(FormatsTest, WritingALaneLeavesTheOthersAlone) {
  test::Random random(91);
  for (const FormatRow& row : kFormats) {
    if (!has_tiles(row)) continue;
    SCOPED_TRACE(row.bits);
    visit_bits<has_tiles>(row.bits, [&](auto bits) {
      const Square<bits> before = random_codes<bits>(random), after = random_codes<bits>(random);
      std::vector<uint8_t> tile(tile_bytes(bits));
      for (uint32_t lane = 0; lane < kTileSide; ++lane) store_lane<bits>(tile.data(), lane, before[lane].data());
      store_lane<bits>(tile.data(), 5, after[5].data());
      store_row<bits>(tile.data(), 9, after[9].data());
      for (uint32_t lane = 0; lane < kTileSide; ++lane) {
        std::array<Code<bits>, kTileSide> expected = lane == 5 ? after[5] : before[lane], loaded;
        expected[9] = after[9][lane];
        load_lane<bits>(tile.data(), lane, loaded.data());
        EXPECT_EQ(loaded, expected) << "lane " << lane;
      }
    });
  }
}

TEST(FormatsTest, FiveBitsAreATileOfFourAndOneOfOne) {
  std::array<uint8_t, kTileSide> codes{0b10001, 0b01111, 0b10000};
  std::array<uint8_t, kTileSide> low{1, 15, 0}, high{1, 0, 1};
  std::vector<uint8_t> tile(tile_bytes(5)), expected(tile_bytes(5));
  EXPECT_EQ(tile.size(), 160u);
  store_lane<5>(tile.data(), 3, codes.data());
  store_lane<4>(expected.data(), 3, low.data());
  store_lane<1>(expected.data() + tile_bytes(4), 3, high.data());
  EXPECT_EQ(tile, expected);
}

TEST(FormatsTest, TheLadderOfABudgetGoesDownToTwoBits) {
  for (const FormatRow& row : kFormats) {
    if (!row.named() || !row.quantised() || row.format == Format::mixed) continue;
    SCOPED_TRACE(row.name);
    Format format = row.format;
    while (const std::optional<Format> smaller = smaller_format(format)) {
      EXPECT_LT(format_bits(*smaller), format_bits(format));
      format = *smaller;
    }
    EXPECT_EQ(format, Format::int2);
  }
  EXPECT_EQ(smaller_format(Format::int4), Format::int3);
  EXPECT_EQ(smaller_format(Format::int3), Format::int2);
  EXPECT_FALSE(smaller_format(Format::mixed));
  EXPECT_FALSE(smaller_format(Format::evict));
}

}  // namespace
}  // namespace mikv::codec
