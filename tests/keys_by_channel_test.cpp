// Keys with scales by channel (keys=channel) and the residual beside them, as in KIVI: codes and scales of a block by
// hand, what comes to a block and what leaves it, attention on every target, saved and hostile states, lower bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "policy/ladder.hpp"
#include "policy/residual.hpp"
#include "test_attention.hpp"
#include "test_policy.hpp"

namespace mikv::test::keys_by_channel_test {
namespace {

using codec::BlockLayout;

BlockLayout by_channel(uint32_t bits, uint32_t dim_k, uint32_t dim_v, uint32_t group_v, uint32_t id_bytes = 4) {
  return BlockLayout::make({.bits = bits,
                            .dim_k = dim_k,
                            .dim_v = dim_v,
                            .group_v = group_v,
                            .id_bytes = id_bytes,
                            .keys_by_channel = true});
}

// ---------------------------------------------------------------- one block

constexpr uint32_t kDim = 8;

// Three tokens in 2 bits, a column a channel. Scales are (max - min) / 3, zeros the minima.
constexpr float kKeys[3][kDim] = {
    {0, -2, 5, 8, 0.75f, -1, 0, 1}, {3, 4, 5, 2, 0, -4, 0, 1}, {1, 1, 5, 4, 0.25f, -2.5f, 6, -2}};
constexpr float kAlphas[kDim] = {1, 2, 0, 2, 0.25f, 1, 2, 1};
constexpr float kBetas[kDim] = {0, -2, 5, 2, 0, -4, 0, -2};
constexpr uint32_t kCodes[3][kDim] = {{0, 0, 0, 3, 3, 3, 0, 3}, {3, 3, 0, 0, 0, 0, 0, 3}, {1, 2, 0, 1, 1, 2, 3, 0}};
// Groups of four channels of a token: from 0 in steps of 1, and from 0 in steps of 2.
constexpr float kValues[kDim] = {0, 3, 1, 2, 6, 0, 2, 4};

struct Block {
  BlockLayout layout = by_channel(2, kDim, kDim, 4);
  std::vector<uint8_t> bytes = std::vector<uint8_t>(layout.bytes);

  void add(uint32_t first, const std::vector<float>& k) {
    const uint32_t n = uint32_t(k.size()) / kDim;
    std::vector<float> v;
    for (uint32_t i = 0; i < n; ++i) v.insert(v.end(), kValues, kValues + kDim);
    codec::add_tokens(bytes.data(), layout, first, n, k.data(), v.data());
  }
  std::vector<float> key(uint32_t lane) const {
    std::vector<float> k(kDim);
    codec::decode_k(bytes.data(), layout, lane, k.data());
    return k;
  }
  uint16_t half(size_t at) const {
    uint16_t value;
    std::memcpy(&value, &bytes[at], sizeof value);
    return value;
  }
  uint32_t word(size_t at) const {
    uint32_t value;
    std::memcpy(&value, &bytes[at], sizeof value);
    return value;
  }
};

Block three_tokens() {
  Block block;
  block.add(0, std::vector<float>(&kKeys[0][0], &kKeys[0][0] + 3 * kDim));
  return block;
}

TEST(KeysByChannelTest, CodesAndScalesOfABlock) {
  const Block block = three_tokens();
  for (uint32_t c = 0; c < kDim; ++c) {
    EXPECT_EQ(block.half(block.layout.scales_k + 2 * c), to_half(kAlphas[c])) << c;
    EXPECT_EQ(block.half(block.layout.scales_k + 2 * (16 + c)), to_half(kBetas[c])) << c;
  }
  for (uint32_t token = 0; token < 3; ++token) {
    uint32_t word = 0;  // of the token's lane: channel 4j + b at bit 2j of byte b
    for (uint32_t c = 0; c < kDim; ++c) word |= kCodes[token][c] << (8 * (c % 4) + 2 * (c / 4));
    EXPECT_EQ(block.word(block.layout.data_k + 4 * token), word) << token;
    std::vector<float> k(kDim), v(kDim);
    codec::decode_token(block.bytes.data(), block.layout, token, k.data(), v.data());
    for (uint32_t c = 0; c < kDim; ++c) EXPECT_EQ(k[c], kAlphas[c] * float(kCodes[token][c]) + kBetas[c]);
    EXPECT_EQ(v, std::vector<float>(kValues, kValues + kDim));
    for (uint32_t group = 0; group < 2; ++group) {
      const size_t scales = block.layout.scales_v + 64 * group + 2 * token;
      EXPECT_EQ(block.half(scales), to_half(group ? 2.0 : 1.0));
      EXPECT_EQ(block.half(scales + 32), to_half(0.0));
    }
  }
}

TEST(KeysByChannelTest, BytesOfABlock) {
  const BlockLayout two = by_channel(2, 128, 128, 32, 2);
  // Ids; 128 alphas and betas by channel; four groups of 16 alphas and betas by token; 16 tiles.
  EXPECT_EQ(two.bytes, size_t{16 * 2 + 128 * 4 + 4 * 64 + 16 * 64});
  EXPECT_DOUBLE_EQ(two.bits_per_element(), 3.5 + 16.0 / 256.0);
  const BlockLayout padded = by_channel(4, 40, 24, 8);
  EXPECT_EQ(padded.bytes, size_t{16 * 4 + 3 * 64 + 3 * 64 + (3 + 2) * 128});
}

TEST(KeysByChannelTest, ATokenThatComesWidensWhatItMust) {
  Block block = three_tokens();
  const std::vector<float> before = block.key(1);
  block.add(3, {6, 0, 5, 8, 0.5f, -4, 2, 0});
  EXPECT_EQ(block.half(block.layout.scales_k), to_half(2.0)) << "channel 0 reaches from 0 to 6 now";
  EXPECT_EQ(block.key(0)[0], 0.0f);
  EXPECT_EQ(block.key(1)[0], 4.0f);  // 3 was a step; it is half way between two, and those round up
  EXPECT_EQ(block.key(2)[0], 2.0f);
  EXPECT_EQ(block.key(3), (std::vector<float>{6, 0, 5, 8, 0.5f, -4, 2, 0}));
  for (uint32_t c = 1; c < kDim; ++c) EXPECT_EQ(block.key(1)[c], before[c]) << "where it is within the range";
}

TEST(KeysByChannelTest, ATokenOfAnotherBlockTakesAPlace) {
  const Block before = three_tokens();
  Block block = before, other;
  other.add(0, {6, 0, 5, 8, 0.5f, -4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  codec::set_block_id(other.bytes.data(), other.layout, 0, 77);
  const uint8_t* own = block.bytes.data();
  const codec::TokenAt tokens[] = {{own, 0}, {other.bytes.data(), 0}, {own, 2}};
  codec::gather_tokens(tokens, block.bytes.data(), block.layout);
  EXPECT_EQ(codec::block_id(own, block.layout, 1), 77u);
  const std::vector<float> given[] = {before.key(0), other.key(0), before.key(2)};
  for (uint32_t c = 0; c < kDim; ++c) {
    const auto [low, high] = std::minmax({given[0][c], given[1][c], given[2][c]});
    const double bound = quantisation_bound(low, high, Format::int2);
    for (uint32_t lane = 0; lane < 3; ++lane) {
      EXPECT_LE(std::abs(block.key(lane)[c] - given[lane][c]), bound) << "channel " << c << " of token " << lane;
    }
  }
}

TEST(KeysByChannelTest, TokensOfOneBlockAreGatheredAsTheyAre) {
  const Block block = three_tokens();
  Block other;
  const codec::TokenAt chosen[] = {{block.bytes.data(), 2}, {block.bytes.data(), 0}};
  codec::gather_tokens(chosen, other.bytes.data(), other.layout);
  EXPECT_EQ(other.key(0), block.key(2));
  EXPECT_EQ(other.key(1), block.key(0));
}

TEST(KeysByChannelTest, WhatIsNoNumberSpoilsNothingElse) {
  Block block;
  block.add(0, {NAN, 1, INFINITY, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_TRUE(codec::has_finite_key_scales(block.bytes.data(), block.layout));
  EXPECT_EQ(block.key(0)[0], 0.0f);
  EXPECT_EQ(block.key(1)[0], 3.0f);
}

// ---------------------------------------------------------------- the residual

TEST(ResidualTest, PlacesGrowByBlocks) {
  const Spec spec = Spec::parse("kivi2").value();
  EXPECT_EQ(spec.residual, 128u);
  for (const auto& [n, hi] : {std::pair{0u, 0u},
                              {1u, 1u},
                              {128u, 128u},
                              {143u, 143u},
                              {144u, 128u},
                              {145u, 129u},
                              {159u, 143u},
                              {160u, 128u},
                              {2048u, 128u},
                              {2063u, 143u}}) {
    EXPECT_EQ(policy::residual::places(spec, n).total, hi) << n;
  }
  const Spec none = Spec::parse("kivi2:residual=0").value();
  EXPECT_EQ(policy::residual::places(none, 15).total, 15u);
  EXPECT_EQ(policy::residual::places(none, 16).total, 0u);
}

TEST(ResidualTest, TheOldestLeave) {
  const std::vector<float> scores(6);
  EXPECT_EQ(demoted({.importance = Importance::residual}, scores, {9, 4, 7, 1, 3, 8}, 4), (std::set<uint32_t>{1, 3}));
}

// ---------------------------------------------------------------- a layer

std::unique_ptr<LayerCache> filled(const LayerShape& shape, const std::string& spec, size_t n, Random& random) {
  auto layer = make_layer(shape, spec);
  put(*layer, 0, cell_range(0, n), Tokens(shape, n, random));
  commit(*layer, 0);
  return layer;
}

void add_tokens(LayerCache& layer, Cell first, uint32_t n, Random& random) {
  for (Cell cell = first; cell < first + n; ++cell) {
    put(layer, 0, cell_range(cell, 1), Tokens(layer.shape(), 1, random));
    commit(layer, 0);
  }
}

void expect_attention(LayerCache& layer, Random& random) {
  for (const uint32_t n_tokens : {1u, 3u, 40u}) {
    Request request(layer.shape(), n_tokens, random);
    const Expected expected = expect(layer, {0}, request);
    for_each_target([&](const std::string& target) {
      ASSERT_TRUE(matches(run(layer, request), expected)) << target << ", " << n_tokens << " query tokens";
    });
  }
}

// Each format and each shape with each number of query heads.
TEST(KeysByChannelTest, AttentionOnEveryTarget) {
  Random random(500);
  constexpr uint32_t kGroups[] = {1, 4, 7};
  size_t n = 0;
  for (const char* lo : {"int2", "int3", "int4", "int5", "int8"}) {
    for (const auto& [dim_k, dim_v] : {std::pair{64u, 64u}, {128u, 128u}, {80u, 80u}, {40u, 24u}}) {
      const uint32_t group = kGroups[n++ % std::size(kGroups)];
      SCOPED_TRACE(std::string(lo) + ", " + std::to_string(dim_k) + ", " + std::to_string(group) + " query heads");
      const LayerShape shape{2 * group, 2, dim_k, dim_v};
      const auto layer = filled(shape, std::string("kivi2:group=auto,residual=16,lo=") + lo, 300, random);
      expect_attention(*layer, random);
      if (HasFatalFailure()) return;
    }
  }
}

// A constant in a few channels of keys, and others of thirty times the spread: what keys by channel are for.
TEST(KeysByChannelTest, ChannelsThatDifferCostNothing) {
  Random random(510);
  const LayerShape shape{4, 2, 128, 128};
  Tokens tokens(shape, 256, random);
  for (size_t t = 0; t < 256; ++t) {
    for (uint32_t head = 0; head < 2; ++head) {
      tokens.key(t, head)[7] += 50.0f, tokens.key(t, head)[90] -= 50.0f;
      tokens.key(t, head)[40] *= 30.0f;
    }
  }
  Request request(shape, 8, random);
  for (size_t i = 40; i < request.q.size(); i += 128) request.q[i] /= 30.0f;
  const auto error_of = [&](const char* spec) {
    const auto layer = make_layer(shape, spec);
    put(*layer, 0, cell_range(0, 256), tokens);
    const std::vector<float> exact = run(*layer, request);
    commit(*layer, 0);
    const std::vector<float> out = run(*layer, request);
    double square = 0.0;
    for (size_t i = 0; i < out.size(); ++i) square += std::pow(double(out[i]) - exact[i], 2);
    return std::sqrt(square / double(out.size()));
  };
  const double by_channel = error_of("rtn4:keys=channel,group=32"), by_token = error_of("rtn4:group=32");
  RecordProperty("by_channel_and_by_token", std::to_string(by_channel) + " " + std::to_string(by_token));
  EXPECT_LT(3.0 * by_channel, by_token);
}

// Cells erased in the middle, tokens one by one into blocks that have room, whole blocks from hi.
TEST(KeysByChannelTest, AttentionAfterTokensCameAndWent) {
  Random random(501);
  for (const char* spec :
       {"kivi4:group=8,residual=20", "rtn8:keys=channel", "rtn4:keys=channel,importance=h2o,keep=0.3"}) {
    SCOPED_TRACE(spec);
    const auto layer = filled({6, 2, 40, 24}, spec, 130, random);
    layer->erase_if(0, 20, 47);
    add_tokens(*layer, 130, 40, random);
    layer->erase_if(0, 0, 3);
    EXPECT_EQ(layer->n_cells(0), 140u);
    expect_attention(*layer, random);
  }
}

/// Keys and values of a layer whose tokens have been moved from one block to another stay what they were, but for one
/// step of each encoding.
TEST(KeysByChannelTest, ErasingEncodesOnlyBlocksThatLoseTokens) {
  Random random(502);
  const LayerShape shape{2, 1, 32, 32};
  const auto layer = filled(shape, "kivi4:residual=0", 80, random);
  const auto before = sorted_dump(*layer, 0, 0);
  ASSERT_EQ(count_tiers(before).lo, 80u);
  layer->erase_if(0, 79, 80);  // the last one: nothing else moves
  auto after = sorted_dump(*layer, 0, 0);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i].k, before[i].k) << i;
  layer->erase_if(0, 35, 36);  // of the third block: the last one takes its place
  after = sorted_dump(*layer, 0, 0);
  ASSERT_EQ(after.size(), 78u);
  for (const StoredToken& token : after) {
    const StoredToken& was = before[token.cell];
    EXPECT_EQ(token.v, was.v);
    if (token.cell / 16 != 2 && token.cell != 78) {
      EXPECT_EQ(token.k, was.k) << token.cell;
      continue;
    }
    for (uint32_t c = 0; c < 32; ++c) {
      double low = before[78].k[c], high = low;
      for (Cell cell = 32; cell < 48; ++cell)
        low = std::min(low, double(before[cell].k[c])), high = std::max(high, double(before[cell].k[c]));
      EXPECT_LE(std::abs(token.k[c] - was.k[c]), quantisation_bound(low, high, Format::int4)) << token.cell;
    }
  }
}

// From the front, as a context that is shifted: the blocks at the end move there, and each is encoded once at most.
TEST(KeysByChannelTest, ErasingManyEncodesABlockOnce) {
  Random random(509);
  const LayerShape shape{2, 1, 32, 32};
  for (const uint32_t n_erased : {16u, 17u, 40u, 79u}) {
    const auto layer = filled(shape, "kivi4:residual=0", 80, random);
    const auto before = sorted_dump(*layer, 0, 0);
    layer->erase_if(0, 0, n_erased);
    const auto after = sorted_dump(*layer, 0, 0);
    ASSERT_EQ(after.size(), 80 - n_erased);
    for (const StoredToken& token : after) {
      EXPECT_EQ(token.v, before[token.cell].v);
      for (uint32_t c = 0; c < 32; ++c) {
        double low = kInfinity, high = -kInfinity;
        for (const StoredToken& other : after) {
          low = std::min(low, double(before[other.cell].k[c])), high = std::max(high, double(before[other.cell].k[c]));
        }
        EXPECT_LE(std::abs(token.k[c] - before[token.cell].k[c]), quantisation_bound(low, high, Format::int4));
      }
    }
    if (n_erased == 16) {
      for (const StoredToken& token : after) EXPECT_EQ(token.k, before[token.cell].k) << "whole blocks";
    }
  }
}

TEST(KeysByChannelTest, OtherKeysInABlock) {
  Random random(503);
  const LayerShape shape{2, 1, 32, 32};
  const auto layer = filled(shape, "kivi4:residual=0", 64, random);
  const auto before = sorted_dump(*layer, 0, 0);
  layer->visit_keys(0, [&](std::span<const Cell> cells, uint32_t, std::span<float> keys) {
    uint32_t changed = 0;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (cells[i] != 20 && cells[i] != 25) continue;
      for (float& x : keys.subspan(i * 32, 32)) x = 4.0f;
      changed |= 1u << i;
    }
    return changed;
  });
  const auto after = sorted_dump(*layer, 0, 0);
  for (const StoredToken& token : after) {
    for (uint32_t c = 0; c < 32; ++c) {
      const bool other = token.cell == 20 || token.cell == 25;
      if (token.cell / 16 != 1) {
        EXPECT_EQ(token.k[c], before[token.cell].k[c]);
      } else {
        EXPECT_NEAR(token.k[c], other ? 4.0f : before[token.cell].k[c], quantisation_bound(-6.0, 6.0, Format::int4));
      }
    }
  }
}

TEST(KeysByChannelTest, LowerBits) {
  Random random(504);
  const LayerShape shape{4, 2, 64, 64};
  const auto layer = filled(shape, "kivi4", 1024, random);
  uint64_t bytes = layer->bytes_used();
  const uint64_t n_hi = count_tiers(layer->dump(0, 0)).hi;
  for (const policy::Rung& rung : policy::ladder_of(layer->spec())) {
    const int64_t freed = layer->freed_by(0, rung, false);
    ASSERT_TRUE(layer->lower(0, rung).ok());
    EXPECT_LT(layer->bytes_used(), bytes);
    EXPECT_LE(freed, int64_t(bytes - layer->bytes_used())) << "no more is promised than is freed";
    bytes = layer->bytes_used();
    EXPECT_EQ(format_bits(layer->spec_of(0).lo), rung.bits);
    EXPECT_EQ(count_tiers(layer->dump(0, 0)).hi, n_hi) << "the residual stays";
    expect_attention(*layer, random);
  }
  EXPECT_EQ(layer->spec_of(0).lo, Format::int2);
  EXPECT_TRUE(policy::ladder_of(Spec::parse("kivi2").value()).empty());
}

TEST(KeysByChannelTest, BitsPerElementOf2048Tokens) {
  Random random(511);
  const LayerShape shape{8, 8, 128, 128};
  const Tokens tokens(shape, 2048, random);
  for (const auto& [spec, bits] : {std::pair{"kivi2", 4.4}, {"kivi4", 6.3}}) {
    const auto layer = make_layer(shape, spec, 1u << 16);
    put(*layer, 0, cell_range(0, 2048), tokens);
    commit(*layer, 0);
    EXPECT_NEAR(layer->memory_usage().bits_per_element(), bits, 0.05) << spec;
  }
}

// What a step needs is never more than what was said beforehand, whatever comes at once.
TEST(KeysByChannelTest, GrowthIsNeverUnderstated) {
  Random random(505);
  const LayerShape shape{4, 2, 64, 64};
  for (const char* spec : {"kivi2", "kivi4:residual=20", "residual", "rtn4:keys=channel"}) {
    SCOPED_TRACE(spec);
    const auto layer = filled(shape, spec, 300, random);
    Cell next = 300;
    for (int step = 0; step < 120; ++step) {
      const uint32_t n = step % 3 ? 1 : 1 + random.below(40), at_once = step % 2 ? 1 : n;
      const LayerGrowth growth = layer->growth(0, n, at_once, true, nullptr, 0);
      const uint64_t before = layer->bytes_used();
      for (uint32_t done = 0; done < n; done += at_once, next += at_once) {
        put(*layer, 0, cell_range(next, std::min(at_once, n - done)),
            Tokens(shape, std::min(at_once, n - done), random));
        commit(*layer, 0);
        const int64_t grown = int64_t(layer->bytes_used()) - int64_t(before);
        ASSERT_LE(grown, growth.lasting + int64_t(growth.transient)) << "step " << step;
      }
      ASSERT_LE(int64_t(layer->bytes_used()) - int64_t(before), growth.lasting) << "step " << step;
      if (step % 10 == 9) layer->erase_if(0, next - 90, next - 90 + random.below(30));
    }
  }
}

// 16 tokens come one by one: hi holds 20 to 35 on the way, and 20 at the end as at the beginning.
TEST(ResidualTest, GrowthCountsTheMostOnTheWay) {
  Random random(512);
  const auto layer = filled({4, 2, 64, 64}, "residual:residual=20", 20 + 18 * 16, random);
  ASSERT_EQ(count_tiers(layer->dump(0, 0)).hi, 20u);
  const LayerGrowth growth = layer->growth(0, 16, 1, true, nullptr, 0);
  const uint64_t before = layer->bytes_used();
  add_tokens(*layer, 20 + 18 * 16, 16, random);
  ASSERT_EQ(count_tiers(layer->dump(0, 0)).hi, 20u);
  EXPECT_GT(layer->bytes_used(), before) << "a third block";
  EXPECT_LE(int64_t(layer->bytes_used() - before), growth.lasting);
}

// ---------------------------------------------------------------- saved states

TEST(KeysByChannelTest, ASavedPartIsWithinAStep) {
  Random random(506);
  const LayerShape shape{2, 1, 32, 32};
  const auto layer = filled(shape, "kivi4:residual=16", 96, random);
  const auto all = sorted_dump(*layer, 0, 0);
  const auto part = [&](const std::vector<Cell>& cells) {
    std::vector<uint8_t> bytes;
    EXPECT_TRUE(layer->save_segment(0, cells, bytes).ok());
    auto loaded = layer->load_segment(bytes, uint32_t(cells.size()));
    EXPECT_TRUE(loaded.ok()) << loaded.message();
    EXPECT_TRUE(layer->adopt_segment(1, std::move(loaded).value(), cells).ok());
    return sorted_dump(*layer, 1, 0);
  };
  for (const StoredToken& token : part(cell_range(0, 48))) EXPECT_EQ(token.k, all[token.cell].k) << "whole blocks";
  for (const StoredToken& token : part(cell_range(0, 44))) EXPECT_EQ(token.k, all[token.cell].k) << "a part of a block";
  std::vector<Cell> odd;
  for (Cell cell = 1; cell < 96; cell += 2) odd.push_back(cell);
  const auto mixed = part(odd);
  ASSERT_EQ(mixed.size(), 48u);
  for (const StoredToken& token : mixed) {
    EXPECT_EQ(token.v, all[token.cell].v);
    for (uint32_t c = 0; c < 32; ++c)
      EXPECT_NEAR(token.k[c], all[token.cell].k[c], quantisation_bound(-6.0, 6.0, Format::int4));
  }
}

TEST(KeysByChannelTest, ScalesThatAreNoNumbersAreRefused) {
  Random random(507);
  const LayerShape shape{2, 1, 40, 32};
  const auto layer = filled(shape, "kivi2:residual=0", 32, random);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, 32), bytes).ok());
  ASSERT_TRUE(layer->load_segment(bytes, 32).ok());
  const BlockLayout layout = by_channel(2, 40, 32, 32);
  for (size_t block = 0; block < 2; ++block) {  // lo is what the file ends with
    const size_t scales = bytes.size() - (2 - block) * layout.bytes + layout.scales_k;
    for (size_t at = 0; at < 3 * 64; at += 2) {  // those of padding too
      std::vector<uint8_t> bad = bytes;
      bad[scales + at] = at % 4 ? 0 : 1;
      bad[scales + at + 1] = at % 4 ? 0x7c : 0xfe;  // infinity, or no number
      EXPECT_EQ(layer->load_segment(bad, 32).error().code, ErrorCode::damaged_data) << at;
    }
  }
}

TEST(KeysByChannelTest, OfTheOtherKindIsRefused) {
  Random random(508);
  const LayerShape shape{2, 1, 32, 32};
  const auto by_channel = filled(shape, "rtn4:keys=channel,group=head", 40, random),
             by_token = filled(shape, "rtn4:group=head", 40, random);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(by_channel->save_segment(0, cell_range(0, 40), bytes).ok());
  EXPECT_EQ(by_token->load_segment(bytes, 40, by_channel->spec()).error().code, ErrorCode::mismatch);
  EXPECT_EQ(by_channel->load_segment(bytes, 40, by_token->spec()).error().code, ErrorCode::mismatch);
  EXPECT_TRUE(by_channel->load_segment(bytes, 40, by_channel->spec()).ok());
}

TEST(KeysByChannelTest, SpecsThatCannotHaveThemAreRefused) {
  for (const auto change :
       {+[](Spec& spec) { spec.hi = Format::int8; }, +[](Spec& spec) { spec.lo = Format::evict; },
        +[](Spec& spec) { spec.lo = Format::mixed; }, +[](Spec& spec) { spec.center = true; },
        +[](Spec& spec) { spec.hadamard = true; }, +[](Spec& spec) { spec.outlier_channels = true; },
        +[](Spec& spec) { spec.quantiser = Quantiser::symmetric; }, +[](Spec& spec) { spec.balancer_file = "file"; }}) {
    Spec spec = Spec::parse("kivi2").value();
    ASSERT_TRUE(LayerCache::create({2, 1, 64, 64}, spec).ok());
    change(spec);
    EXPECT_EQ(LayerCache::create({2, 1, 64, 64}, spec).error().code, ErrorCode::unsupported) << spec.to_string();
  }
  EXPECT_NE(LayerCache::create({2, 1, 64, 80}, Spec::parse("kivi2").value()).message().find("group=32"),
            std::string::npos);
  EXPECT_TRUE(LayerCache::create({2, 1, 80, 64}, Spec::parse("kivi2").value()).ok()) << "groups are of values";
}

}  // namespace
}  // namespace mikv::test::keys_by_channel_test
