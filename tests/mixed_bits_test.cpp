// lo=mixed: which tiles get which bits, the coordinates that make them comparable, and what is lost by them.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "codec/block.hpp"
#include "codec/fp16.hpp"
#include "codec/scale8.hpp"
#include "codec/trellis.hpp"
#include "policy/bit_allocation.hpp"
#include "policy/mixed_calibration.hpp"
#include "test_attention.hpp"
#include "test_cache.hpp"

namespace mikv::test::mixed_bits_test {
namespace {

TEST(Scale8Test, EveryByteRoundTripsAndRoundingIsNearest) {
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const float scale = codec::scale8_to_f32(uint8_t(byte));
    EXPECT_EQ(codec::scale8_from_f32(scale), byte);
    if (byte == 0) continue;
    const float before = codec::scale8_to_f32(uint8_t(byte - 1));
    EXPECT_LT(before, scale);
    EXPECT_LE(scale / before, 1.0f + 1.0f / 16.0f);
    EXPECT_EQ(codec::scale8_from_f32(before + 0.51f * (scale - before)), byte);
    EXPECT_EQ(codec::scale8_from_f32(before + 0.49f * (scale - before)), byte - 1);
  }
  EXPECT_EQ(codec::scale8_from_f32(0.0f), 0);
  EXPECT_EQ(codec::scale8_from_f32(1e9f), 255);
}

double harm_of(const std::vector<double>& k, const std::vector<double>& v, const policy::TileBits& bits) {
  double harm = 0.0;
  for (size_t t = 0; t < k.size(); ++t) harm += k[t] * codec::kKeyError[bits.k[t]];
  for (size_t t = 0; t < v.size(); ++t) harm += v[t] * codec::kValueError[bits.v[t]];
  return harm;
}

// No step could be moved from any tile to any other that takes no more bits and do less harm there; and all bits are
// used, but for one where all tiles have 4 and the next step takes two.
TEST(BitAllocationTest, IsTheBestThereIs) {
  Random random(80);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<double> k(1 + random.below(32)), v(1 + random.below(32));
    for (auto* harms : {&k, &v}) {
      for (double& harm : *harms) harm = std::exp(random.uniform(-8.0f, 8.0f));
    }
    const auto tiles = uint32_t(k.size() + v.size());
    const uint32_t total = random.below(7 * tiles);
    policy::TileBits bits = policy::allocate_bits(k, v, total);
    const uint32_t used =
        std::accumulate(bits.k.begin(), bits.k.end(), 0u) + std::accumulate(bits.v.begin(), bits.v.end(), 0u);
    const uint32_t wanted = std::clamp(total, tiles, 6 * tiles);
    ASSERT_TRUE(used == wanted || (used + 1 == wanted && wanted > 4 * tiles)) << used << " of " << wanted;
    const double best = harm_of(k, v, bits);
    const auto bits_of = [&](size_t tile) -> uint8_t& {
      return tile < k.size() ? bits.k[tile] : bits.v[tile - k.size()];
    };
    for (size_t from = 0; from < tiles; ++from) {
      for (size_t to = 0; to < tiles; ++to) {
        const uint8_t before_from = bits_of(from), before_to = bits_of(to);
        if (from == to || before_from == 1 || before_to == 6) continue;
        bits_of(from) = before_from == 6 ? 4 : before_from - 1;
        bits_of(to) = uint8_t(codec::next_tile_bits(before_to));
        if (bits_of(to) - before_to <= before_from - bits_of(from)) {
          ASSERT_GE(harm_of(k, v, bits), best * (1.0 - 1e-12));
        }
        bits_of(from) = before_from, bits_of(to) = before_to;
      }
    }
  }
}

std::vector<uint8_t> any_bits(uint32_t dim, Random& random) {
  std::vector<uint8_t> bits(codec::tiles_of(dim));
  for (uint8_t& b : bits) b = std::array<uint8_t, 5>{1, 2, 3, 4, 6}[random.below(5)];
  return bits;
}

// Normally distributed channels lose what codec/trellis.hpp says, a scale in a byte included; and copies are exact.
TEST(MixedCodecTest, ErrorIsThatOfTheTable) {
  Random random(81);
  for (const uint32_t dim : {64u, 128u, 256u}) {
    const std::vector<uint8_t> bits_k = any_bits(dim, random), bits_v = any_bits(dim, random);
    const std::vector<float> weights(codec::tiles_of(dim), 1.0f);
    const auto layout = codec::BlockLayout::make_mixed(dim, dim, {bits_k, weights}, {bits_v, weights});
    std::vector<uint8_t> block(layout.bytes), other(layout.bytes);
    constexpr int kBlocks = 60;
    std::vector<double> error_k(7, 0.0), error_v(7, 0.0), n_k(7, 0.0), n_v(7, 0.0);
    std::vector<float> k2(dim), v2(dim), k3(dim), v3(dim);
    for (int i = 0; i < kBlocks; ++i) {
      for (uint32_t lane = 0; lane < codec::kBlockTokens; ++lane) {
        const float size = std::exp(random.uniform(-2.0f, 2.0f));
        std::vector<float> k = random.normals(dim), v = random.normals(dim);
        for (uint32_t c = 0; c < dim; ++c) k[c] *= size, v[c] *= size;
        codec::encode_token(block.data(), layout, lane, k.data(), v.data());
        codec::decode_token(block.data(), layout, lane, k2.data(), v2.data());
        const uint32_t to = codec::kBlockTokens - 1 - lane;
        codec::copy_token(block.data(), lane, other.data(), to, layout);
        codec::decode_token(other.data(), layout, to, k3.data(), v3.data());
        ASSERT_EQ(k2, k3);
        ASSERT_EQ(v2, v3);
        for (uint32_t c = 0; c < dim; ++c) {
          error_k[bits_k[c / 16]] += std::pow(double(k2[c] - k[c]) / size, 2), n_k[bits_k[c / 16]] += 1.0;
          error_v[bits_v[c / 16]] += std::pow(double(v2[c] - v[c]) / size, 2), n_v[bits_v[c / 16]] += 1.0;
        }
      }
    }
    for (const uint32_t bits : {1u, 2u, 3u, 4u, 6u}) {
      // Our normal numbers have short tails, and a least-squares scale fits its own token: somewhat below the table.
      const double table_k = 0.9 * codec::kKeyError[bits], table_v = 0.9 * codec::kValueError[bits];
      if (n_k[bits] > 0.0) {
        EXPECT_NEAR(error_k[bits] / n_k[bits], table_k, 0.15 * table_k + 0.001) << dim << " K " << bits;
      }
      if (n_v[bits] > 0.0) {
        EXPECT_NEAR(error_v[bits] / n_v[bits], table_v, 0.15 * table_v + 0.001) << dim << " V " << bits;
      }
    }
  }
}

TEST(MixedCodecTest, HostileValuesStayFinite) {
  const std::vector<uint8_t> bits = {1, 2, 3, 4, 6};
  const std::vector<float> weights = {1.0f, 0.3f, 0.1f, 1e-9f, 0.5f};
  const auto layout = codec::BlockLayout::make_mixed(80, 80, {bits, weights}, {bits, weights});
  std::vector<uint8_t> block(layout.bytes);
  std::vector<float> k2(80), v2(80);
  for (const float value : {0.0f, 65504.0f, -65504.0f, 1e-30f}) {
    std::vector<float> k(80, value), v(80, 0.0f);
    v[7] = value;
    codec::encode_token(block.data(), layout, 3, k.data(), v.data());
    codec::decode_token(block.data(), layout, 3, k2.data(), v2.data());
    for (const float x : k2) EXPECT_TRUE(std::isfinite(x)) << value;
    for (const float x : v2) EXPECT_TRUE(std::isfinite(x)) << value;
  }
}

policy::Moments any_moments(uint32_t dim_k, uint32_t dim_v, Random& random) {
  policy::Moments m;
  for (uint32_t c = 0; c < dim_k; ++c) {
    m.k_mean.push_back(random.uniform(-20.0f, 20.0f));
    m.k_square.push_back(m.k_mean[c] * m.k_mean[c] + std::exp(random.uniform(-6.0f, 3.0f)));
    m.q_square.push_back(std::exp(random.uniform(-6.0f, 3.0f)));
  }
  for (uint32_t c = 0; c < dim_v; ++c) {
    m.v_mean.push_back(random.uniform(-2.0f, 2.0f));
    m.v_square.push_back(m.v_mean[c] * m.v_mean[c] + std::exp(random.uniform(-6.0f, 1.0f)));
  }
  return m;
}

// Coordinates are a change of basis: there and back, and q'.k' + q.mu is q.k.
TEST(MixedCalibrationTest, CoordinatesKeepDotProductsAndSums) {
  Random random(82);
  for (const uint32_t dim : {8u, 24u, 40u, 64u, 72u, 80u, 96u, 128u, 256u, 512u}) {
    const policy::MixedCalibration segment = policy::plan_mixed_calibration(any_moments(dim, dim, random), 3.0, 4);
    for (const codec::Axes* axes : {&segment.transform.key, &segment.transform.value}) {
      std::vector<uint16_t> order = axes->order;
      std::sort(order.begin(), order.end());
      for (uint32_t c = 0; c < dim; ++c) ASSERT_EQ(order[c], c);
      ASSERT_EQ(std::accumulate(axes->turns.begin(), axes->turns.end(), 0u), dim);
      std::vector<float> x(dim), y;
      for (uint32_t c = 0; c < dim; ++c) x[c] = codec::f16_to_f32(axes->centre[c]) + random.normal();
      y = x;
      axes->to_tier(y);
      axes->from_tier(y);
      for (uint32_t c = 0; c < dim; ++c) ASSERT_NEAR(y[c], x[c], 2e-3 * (1.0 + std::abs(x[c]))) << dim;
    }
  }
}

// Coordinates of the prompt have variance 1 in every turn, so that tiles of all bits share a scale.
TEST(MixedCalibrationTest, EveryTurnHasUnitVariance) {
  Random random(83);
  const policy::Moments m = any_moments(128, 128, random);
  const policy::MixedCalibration segment = policy::plan_mixed_calibration(m, 3.0, 4);
  const codec::Axes& key = segment.transform.key;
  size_t place = 0;
  for (const uint16_t turn : key.turns) {
    double variance = 0.0;
    for (const size_t end = place + turn; place < end; ++place) {
      const uint16_t c = key.order[place];
      const double mu = codec::f16_to_f32(key.centre[c]), b = codec::f16_to_f32(key.balancer[c]);
      variance += (m.k_square[c] - 2.0 * mu * m.k_mean[c] + mu * mu) * b * b / turn;
    }
    EXPECT_NEAR(variance, 1.0, 0.01);
  }
}

// bits= is a promise about memory: a full block never takes more, unless 1 bit per tile is more already.
TEST(MixedCalibrationTest, BlocksTakeTheBitsAskedFor) {
  Random random(84);
  for (const uint32_t dim : {64u, 80u, 128u, 256u}) {
    for (const double bits : {1.0, 2.15, 3.0, 4.125, 5.0}) {
      const uint32_t id_bytes = random.below(2) ? 2 : 4;
      const policy::MixedCalibration segment =
          policy::plan_mixed_calibration(any_moments(dim, dim, random), bits, id_bytes);
      const double taken = 8.0 * double(segment.lo.bytes) / double(codec::kBlockTokens * 2 * dim);
      const double least =
          8.0 * (16.0 * id_bytes + 32.0 + 64.0 * codec::tiles_of(dim)) / double(codec::kBlockTokens * 2 * dim);
      EXPECT_LE(taken, std::max(bits, least) + 1e-9) << dim << " " << bits;
      EXPECT_GE(taken, std::min(bits, 4.0) - 8.0 * 32.0 / double(codec::kBlockTokens * 2 * dim)) << dim << " " << bits;
    }
  }
}

// A channel of 30 times the others takes the bits with it: less error than when all channels have the same bits.
TEST(MixedCalibrationTest, BeatsEqualBitsWhereChannelsDiffer) {
  Random random(85);
  const LayerShape shape{4, 2, 128, 128};
  Tokens tokens(shape, 300, random);
  for (size_t t = 0; t < tokens.n; ++t) {
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint32_t c = 0; c < 128; ++c) {
        tokens.key(t, head)[c] *= c % 8 == 3 ? 4.0f : 0.3f;
        tokens.value(t, head)[c] *= c % 8 == 5 ? 4.0f : 0.3f;
      }
    }
  }
  const auto error = [&](const std::string& spec) {
    const auto layer = make_layer(shape, spec);
    put(*layer, 0, cell_range(0, tokens.n), tokens);
    commit(*layer, 0);
    double square = 0.0;
    for (uint32_t head = 0; head < 2; ++head) {
      const std::vector<StoredToken> stored = sorted_dump(*layer, 0, head);
      for (size_t t = 0; t < tokens.n; ++t) {
        for (uint32_t c = 0; c < 128; ++c) {
          square += std::pow(double(stored[t].k[c]) - tokens.key(t, head)[c], 2);
          square += std::pow(double(stored[t].v[c]) - tokens.value(t, head)[c], 2);
        }
      }
    }
    return square;
  };
  // 3 bits with ids and scales, against INT3 with rotation, which takes 3.6.
  EXPECT_LT(error("mikv:keep=0,bits=3"), 0.6 * error("mikv:keep=0,lo=int3,outlier=balancer+center+hadamard"));
}

// What attention makes up for is there: keys of normally distributed channels are off by what k_error says, all in all.
TEST(MixedCalibrationTest, ExpectedErrorOfKeysIsTheirError) {
  Random random(86);
  const LayerShape shape{4, 2, 64, 64};
  Tokens tokens(shape, 500, random);
  for (const char* spec : {"mikv:keep=0.1,bits=2", "mikv:keep=0.1,bits=3", "mikv:keep=0.1,bits=4"}) {
    const auto layer = make_layer(shape, spec);
    put(*layer, 0, cell_range(0, tokens.n), tokens);
    commit(*layer, 0);
    double measured = 0.0, expected = 0.0;
    for (const StoredToken& stored : layer->dump(0, 1)) {
      ASSERT_EQ(stored.k_error.empty(), stored.tier != TokenTier::lo);
      if (stored.tier != TokenTier::lo) continue;
      for (uint32_t c = 0; c < 64; ++c) {
        measured += std::pow(double(stored.k[c]) - tokens.key(stored.cell, 1)[c], 2);
        expected += stored.k_error[c];
      }
    }
    EXPECT_NEAR(measured, expected, 0.15 * expected) << spec;
  }
}

// Cell numbers of two bytes and of four give the same attention; each refuses cells beyond its own.
TEST(MixedCalibrationTest, NarrowIdsAreWideIds) {
  Random random(87);
  const LayerShape shape{4, 2, 64, 64};
  const Tokens tokens(shape, 200, random);
  for (const char* spec : {"full", "mikv-paper", "mikv:lo=int3"}) {
    std::vector<std::vector<float>> outs;
    for (const uint32_t max_cells : {65536u, 65537u}) {
      const auto layer = make_layer(shape, spec, max_cells);
      put(*layer, 0, cell_range(65536 - 200, 200), tokens);
      commit(*layer, 0);
      Random again(88);
      Request request(shape, 2, again);
      request.set_mask(Mask::Type::f32, 65536, [&](uint32_t, uint32_t cell) { return cell % 3 ? 0.0f : -INFINITY; });
      outs.push_back(run(*layer, request));
      const Cell beyond = max_cells;
      EXPECT_FALSE(
          layer->put(0, std::span(&beyond, 1), tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride)
              .ok());
    }
    EXPECT_EQ(outs[0], outs[1]) << spec;
  }
}

}  // namespace
}  // namespace mikv::test::mixed_bits_test
