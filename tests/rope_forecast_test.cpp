// RoPE forecast: moments of keys over a whole context from its first tokens, and coordinates that hold there.
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <limits>

#include "policy/rope_forecast.hpp"
#include "test_cache.hpp"

namespace mikv::test::rope_forecast_test {
namespace {

Rope rope_of_base(double base, uint32_t n_channels, bool adjacent) {
  Rope rope{{}, adjacent};
  for (uint32_t i = 0; i < n_channels / 2; ++i) rope.angles.push_back(float(std::pow(base, -2.0 * i / n_channels)));
  return rope;
}

// A key of biased channels, turned to its position.
void write_key(float* key, uint32_t dim, const Rope& rope, uint32_t position, Random& random) {
  for (uint32_t c = 0; c < dim; ++c)
    key[c] = float(random.normal()) * (1.0f + 0.1f * float(c % 7)) + 4.0f * float(c % 3) - 4.0f;
  for (uint32_t i = 0; i < rope.angles.size(); ++i) {
    const auto [a, b] = rope.channels(i);
    const double turn = double(rope.angles[i]) * position, x = key[a], y = key[b];
    key[a] = float(x * std::cos(turn) - y * std::sin(turn));
    key[b] = float(x * std::sin(turn) + y * std::cos(turn));
  }
}

policy::Moments moments_of(uint32_t dim, const Rope& rope, uint32_t n, Random& random, policy::RopeForecast* forecast) {
  policy::Moments moments{std::vector<double>(dim), std::vector<double>(dim), {}, {}, std::vector<double>(dim, 1.0)};
  std::vector<float> key(dim);
  for (uint32_t position = 0; position < n; ++position) {
    write_key(key.data(), dim, rope, position, random);
    if (forecast) forecast->add(key.data(), position);
    for (uint32_t c = 0; c < dim; ++c)
      moments.k_mean[c] += key[c] / double(n), moments.k_square[c] += double(key[c]) * key[c] / n;
  }
  return moments;
}

TEST(RopeForecastTest, SaysWhatTheWholeContextHas) {
  constexpr uint32_t kDim = 40, kTurning = 32, kHorizon = 20000;  // eight channels do not turn
  for (const bool adjacent : {false, true}) {
    Random random(130);
    const Rope rope = rope_of_base(10000.0, kTurning, adjacent);
    policy::RopeForecast forecast(rope);
    policy::Moments got = moments_of(kDim, rope, 4000, random, &forecast);
    const policy::Moments first = got, expected = moments_of(kDim, rope, kHorizon, random, nullptr);
    forecast.apply(kHorizon, got);
    double wrong_before = 0.0;
    for (uint32_t c = 0; c < kDim; ++c) {
      EXPECT_NEAR(got.k_mean[c], expected.k_mean[c], 0.15) << c;
      EXPECT_NEAR(got.k_square[c], expected.k_square[c], 0.06 * expected.k_square[c]) << c;
      wrong_before = std::max(wrong_before, std::abs(first.k_mean[c] - expected.k_mean[c]));
    }
    EXPECT_GT(wrong_before, 1.0);  // else there was nothing to foresee
  }
}

TEST(RopeForecastTest, ItsOwnPromptIsWhatItWas) {
  Random random(131);
  const Rope rope = rope_of_base(10000.0, 32, true);
  policy::RopeForecast forecast(rope);
  policy::Moments got = moments_of(32, rope, 5000, random, &forecast);
  const policy::Moments before = got;
  forecast.apply(5000, got);
  for (uint32_t c = 0; c < 32; ++c) {
    EXPECT_NEAR(got.k_mean[c], before.k_mean[c], 0.1) << c;
    EXPECT_NEAR(got.k_square[c], before.k_square[c], 0.06 * before.k_square[c]) << c;
  }
  policy::Moments none = before;
  policy::RopeForecast(rope).apply(5000, none);  // nothing was added
  EXPECT_EQ(none.k_mean, before.k_mean);
}

TEST(RopeForecastTest, QueriesOfAPairThatTurnsAroundAreAlike) {
  const Rope rope{{1.0f, 1e-7f}, true};
  policy::RopeForecast forecast(rope);
  const float key[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  forecast.add(key, 0);
  policy::Moments moments{std::vector<double>(4), std::vector<double>(4), {}, {}, {1.0, 3.0, 1.0, 3.0}};
  forecast.apply(10000, moments);
  EXPECT_NEAR(moments.q_square[0], 2.0, 0.01);
  EXPECT_NEAR(moments.q_square[1], 2.0, 0.01);
  EXPECT_NEAR(moments.q_square[2], 1.0, 0.01);
  EXPECT_NEAR(moments.q_square[3], 3.0, 0.01);
}

// Keys that come long after the segment was frozen.
TEST(RopeForecastTest, LaterKeysAreStoredBetter) {
  const LayerShape shape{2, 1, 64, 64};
  const Rope rope = rope_of_base(100000.0, 64, false);
  double error[2] = {};
  for (const bool known : {false, true}) {
    Random random(132);
    const auto layer = make_layer(shape, "mikv:keep=0,bits=3");
    if (known) {
      ASSERT_TRUE(layer->set_rope(rope).ok());
    }
    for (uint32_t first = 0; first < 2048; first += 512) {
      Tokens tokens(shape, 512, random);
      for (uint32_t i = 0; i < 512; ++i) write_key(tokens.key(i, 0), 64, rope, first + i, random);
      put(*layer, 0, cell_range(first, 512), tokens);
      commit(*layer, 0);
      const auto stored = sorted_dump(*layer, 0, 0);
      for (uint32_t i = 0; i < 512; ++i) {
        for (uint32_t c = 0; c < 64; ++c)
          error[known] += std::pow(double(stored[first + i].k[c]) - tokens.key(i, 0)[c], 2);
      }
    }
  }
  EXPECT_LT(error[1], 0.9 * error[0]);
}

void divide_positions(LayerCache& layer, const Rope& rope, uint32_t dim, Cell by) {
  layer.visit_keys(0, [&](std::span<const Cell> cells, uint32_t, std::span<float> keys) {
    for (size_t i = 0; i < cells.size(); ++i) {
      for (uint32_t pair = 0; pair < rope.angles.size(); ++pair) {
        const auto [a, b] = rope.channels(pair);
        float &x = keys[i * dim + a], &y = keys[i * dim + b];
        const double moved = double(cells[i] / by) - cells[i];
        const auto turned = std::complex<double>(x, y) * std::polar(1.0, double(rope.angles[pair]) * moved);
        x = float(turned.real()), y = float(turned.imag());
      }
    }
    return 0xFFFFFFFFu >> (32 - cells.size());
  });
}

// Self-extend divides positions while a prompt is staged: a token's number is its position no more. Also where the
// prompt was saved and loaded before it is compressed.
TEST(RopeForecastTest, KeysThatWereTurnedAreTakenAsTheyAre) {
  const LayerShape shape{2, 1, 64, 64};
  const Rope rope = rope_of_base(100000.0, 64, false);
  constexpr uint32_t kTokens = 1024;
  const std::vector<Cell> cells = cell_range(0, kTokens);
  enum { without_rope, with_rope, reloaded, n_ways };
  double error[n_ways] = {};
  for (int way = 0; way < n_ways; ++way) {
    Random random(133);
    auto layer = make_layer(shape, "mikv:keep=0,bits=3"), other = make_layer(shape, "mikv:keep=0,bits=3");
    for (LayerCache* each : {layer.get(), other.get()}) {
      if (way != without_rope) {
        ASSERT_TRUE(each->set_rope(rope).ok());
      }
    }
    Tokens tokens(shape, kTokens, random);
    for (uint32_t i = 0; i < kTokens; ++i) write_key(tokens.key(i, 0), 64, rope, i, random);
    put(*layer, 0, cells, tokens);
    divide_positions(*layer, rope, 64, 8);
    if (way == reloaded) {
      std::vector<uint8_t> bytes;
      ASSERT_TRUE(layer->save_segment(0, cells, bytes).ok());
      auto loaded = other->load_segment(bytes, kTokens);
      ASSERT_TRUE(loaded.ok()) << loaded.message();
      ASSERT_TRUE(other->adopt_segment(0, std::move(loaded).value(), cells).ok());
      std::swap(layer, other);
    }
    const auto staged = sorted_dump(*layer, 0, 0);
    commit(*layer, 0);
    const auto stored = sorted_dump(*layer, 0, 0);
    for (uint32_t i = 0; i < kTokens; ++i) {
      for (uint32_t c = 0; c < 64; ++c) error[way] += std::pow(double(stored[i].k[c]) - staged[i].k[c], 2);
    }
  }
  EXPECT_LT(error[with_rope], 1.1 * error[without_rope]);  // twice as large where the numbers were taken for positions
  EXPECT_LT(error[reloaded], 1.1 * error[without_rope]);
}

TEST(RopeForecastTest, BadAnglesAreRefused) {
  const auto layer = make_layer({2, 1, 16, 16}, "mikv");
  EXPECT_TRUE(layer->set_rope({std::vector<float>(8, 0.5f), true}).ok());
  EXPECT_TRUE(layer->set_rope({}).ok());
  EXPECT_NE(layer->set_rope({std::vector<float>(9, 0.5f), true}).message().find("18 channels"), std::string::npos);
  EXPECT_NE(layer->set_rope({{std::numeric_limits<float>::quiet_NaN()}, true}).message().find("finite"),
            std::string::npos);
}

}  // namespace
}  // namespace mikv::test::rope_forecast_test
