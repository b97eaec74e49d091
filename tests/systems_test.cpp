// Published systems as specs (docs/systems.md): what each one keeps and what each one stores, by answers known
// beforehand. Every choice is checked with a KV head for each query head, for several (GQA) and for all of them (MQA).
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "test_attention.hpp"

namespace mikv::test::systems_test {
namespace {

constexpr LayerShape kShapes[] = {{2, 2, 32, 32}, {6, 2, 32, 32}, {4, 1, 32, 32}};

using Cells = std::set<Cell>;

Cells range(Cell first, Cell last) {
  Cells cells;
  for (Cell cell = first; cell < last; ++cell) cells.insert(cell);
  return cells;
}

Cells both(Cells a, const Cells& b) {
  a.insert(b.begin(), b.end());
  return a;
}

Cells cells_in(const LayerCache& layer, uint32_t head, TokenTier tier) {
  Cells cells;
  for (const StoredToken& token : layer.dump(0, head)) {
    if (token.tier == tier) cells.insert(token.cell);
  }
  return cells;
}

/// n tokens from `first` on that every query looks at by the first channel of their keys alone: at those of `looked_at`
/// far more than at others.
void put_looked_at(LayerCache& layer, Cell first, uint32_t n, const Cells& looked_at, Random& random) {
  Tokens tokens(layer.shape(), n, random);
  std::fill(tokens.k.begin(), tokens.k.end(), 0.0f);
  for (const Cell cell : looked_at) {
    if (cell < first || cell >= first + n) continue;
    for (uint32_t head = 0; head < layer.shape().n_kv_heads; ++head) tokens.key(cell - first, head)[0] = 8.0f;
  }
  put(layer, 0, cell_range(first, n), tokens);
}

Request looking(const LayerShape& shape, uint32_t n, Cell n_before, Random& random) {
  Request request(shape, n, random);
  std::fill(request.q.begin(), request.q.end(), 0.0f);
  for (uint32_t t = 0; t < n; ++t) {
    for (uint32_t head = 0; head < shape.n_heads; ++head) const_cast<float*>(request.query(t, head))[0] = 1.0f;
  }
  request.scale = 1.0f;
  request.record = true;
  request.set_causal(Mask::Type::f32, n_before + n, n_before);
  return request;
}

/// A prompt of n tokens, committed.
std::unique_ptr<LayerCache> after_prompt(const LayerShape& shape, const char* spec, uint32_t n,
                                         const Cells& looked_at) {
  Random random(300);
  auto layer = make_layer(shape, spec);
  put_looked_at(*layer, 0, n, looked_at, random);
  run(*layer, looking(shape, n, 0, random));
  commit(*layer, 0);
  return layer;
}

/// Tokens that are generated one by one, up to n_last tokens in all.
void generate(LayerCache& layer, Cell first, Cell n_last, const Cells& looked_at) {
  Random random(301);
  for (Cell cell = first; cell < n_last; ++cell) {
    put_looked_at(layer, cell, 1, looked_at, random);
    Request step = looking(layer.shape(), 1, cell, random);
    step.commit = true;
    run(layer, step);
  }
}

/// What the hi tier of every head holds after a prompt of n tokens, and the tier of all others.
void expect_kept(const char* spec, const Cells& looked_at, const Cells& kept, TokenTier others, uint32_t n = 50) {
  for (const LayerShape& shape : kShapes) {
    const auto layer = after_prompt(shape, spec, n, looked_at);
    for (uint32_t head = 0; head < shape.n_kv_heads; ++head) {
      EXPECT_EQ(cells_in(*layer, head, TokenTier::hi), kept) << spec << ", " << shape.n_heads << " query heads";
      EXPECT_EQ(cells_in(*layer, head, others).size(), n - kept.size()) << spec;
    }
  }
}

TEST(SystemsTest, FullKeepsEveryTokenAsItIs) {
  for (const LayerShape& shape : kShapes) {
    const auto layer = after_prompt(shape, "full", 50, {});
    EXPECT_EQ(cells_in(*layer, 0, TokenTier::staged), range(0, 50));
  }
}

TEST(SystemsTest, ASlidingWindowKeepsTheMostRecent) {
  expect_kept("window", {3, 17}, range(40, 50), TokenTier::evicted);
  const auto layer = after_prompt(kShapes[1], "window", 50, {});
  generate(*layer, 50, 60, {});
  EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi), range(48, 60));  // floor(0.2 x 60) tokens
}

TEST(SystemsTest, StreamingLlmKeepsFourSinksToo) {
  expect_kept("streaming", {17}, both(range(0, 4), range(44, 50)), TokenTier::evicted);
  const auto layer = after_prompt(kShapes[1], "streaming", 50, {});
  generate(*layer, 50, 60, {});
  EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi), both(range(0, 4), range(52, 60)));
}

TEST(SystemsTest, H2oKeepsHalfHeavyAndHalfRecent) {
  const Cells heavy = {3, 11, 17, 20, 31};
  expect_kept("h2o", heavy, both(heavy, range(45, 50)), TokenTier::evicted);
}

// Of 20 places 10 are for recent tokens. Nobody's attention to a token that is not looked at is above the mean.
TEST(SystemsTest, ScissorhandsKeepsWhatIsAboveTheMean) {
  const Cells important = {3, 11, 17, 20, 31};
  expect_kept("scissorhands", important, both(important, range(85, 100)), TokenTier::evicted, 100);
}

TEST(SystemsTest, MiKvKeepsWhatH2oKeepsAndRetainsTheRest) {
  const Cells heavy = {3, 11, 17, 20, 31};
  for (const char* spec : {"mikv-paper", "mikv-paper-f16", "mikv-paper-int8", "mikv-paper-int4", "mikv-paper-int2"}) {
    expect_kept(spec, heavy, both(heavy, range(45, 50)), TokenTier::lo);
  }
}

/// Bits per element of the codes and scales of 1,600 tokens, as a share of f16's, in percent.
double size_of(const char* spec) {
  const auto layer = after_prompt({2, 1, 128, 128}, spec, 1600, {});
  const MemoryUsage usage = layer->memory_usage();
  return 100.0 * double(usage.hi + usage.lo + usage.scales) / (2.0 * double(usage.n_elements));
}

// The sizes of the paper's table: 33, 23, 18 and 16 % with lo in INT2.
TEST(SystemsTest, MiKvHasTheSizesOfItsPaper) {
  EXPECT_DOUBLE_EQ(size_of("mikv-paper-f16"), 100.0 * (0.2 * 16.0 + 0.8 * 2.5) / 16.0);
  EXPECT_DOUBLE_EQ(size_of("mikv-paper-int8"), 100.0 * (0.2 * 8.5 + 0.8 * 2.5) / 16.0);
  EXPECT_DOUBLE_EQ(size_of("mikv-paper-int4"), 100.0 * (0.2 * 4.5 + 0.8 * 2.5) / 16.0);
  EXPECT_DOUBLE_EQ(size_of("mikv-paper-int2"), 100.0 * 2.5 / 16.0);
}

/// One token whose channels are given(c), stored under the spec: its key and its value as they come back.
StoredToken stored(const char* spec, uint32_t head_dim, const std::function<float(uint32_t)>& given) {
  Random random(302);
  const LayerShape shape{1, 1, head_dim, head_dim};
  const auto layer = make_layer(shape, spec);
  Tokens tokens(shape, 1, random);
  for (uint32_t c = 0; c < head_dim; ++c) tokens.key(0, 0)[c] = tokens.value(0, 0)[c] = given(c);
  put(*layer, 0, cell_range(0, 1), tokens);
  commit(*layer, 0);
  return layer->dump(0, 0).at(0);
}

TEST(SystemsTest, RoundToNearestByToken) {
  // Groups of half a head. INT2 from -1 to 2 has the steps -1, 0, 1, 2; a group of one value is exact.
  const auto given = [](uint32_t c) { return c >= 4 ? 7.0f : std::array{-1.0f, 2.0f, 0.4f, 0.6f}[c]; };
  const std::vector<float> by_two_bits = {-1, 2, 0, 1, 7, 7, 7, 7};
  EXPECT_EQ(stored("rtn2", 8, given).k, by_two_bits);
  EXPECT_EQ(stored("rtn2", 8, given).v, by_two_bits);
  // From 0 to 2^N - 1 the step is 1, whatever the N.
  for (const auto& [spec, top] : {std::pair{"rtn2", 3.0f}, {"rtn3", 7.0f}, {"rtn4", 15.0f}, {"rtn8", 255.0f}}) {
    const auto steps = [top](uint32_t c) { return std::array{0.0f, top, 1.25f, 2.5f}[c % 4]; };
    EXPECT_EQ(stored(spec, 8, steps).k, (std::vector<float>{0, top, 1, 3, 0, top, 1, 3})) << spec;
  }
}

TEST(SystemsTest, FlexGenHasGroupsOf64Channels) {
  // One group from 0 to 15, whose step is 1, and one from 0 to 30, whose step is 2.
  const auto given = [](uint32_t c) { return c < 64 ? float(c % 16) : float(c % 31); };
  const StoredToken token = stored("flexgen", 128, given);
  for (uint32_t c = 0; c < 128; ++c) {
    EXPECT_EQ(token.k[c], c < 64 ? given(c) : 2.0f * std::floor(given(c) / 2.0f + 0.5f)) << c;
    EXPECT_EQ(token.v[c], token.k[c]) << c;
  }
  const GroupSize group = Spec::parse("flexgen").value().group;
  EXPECT_EQ(group.resolve(256), 64u);
  EXPECT_EQ(group.resolve(64), 64u);
  EXPECT_EQ(group.resolve(32), 32u);  // a head is one group
  EXPECT_EQ(group.resolve(80), 40u);  // 64 does not divide it
}

TEST(SystemsTest, LlmQatIsSymmetricByToken) {
  // The largest magnitude of a head is 7: the step of 4 bits is 1.
  const auto given = [](uint32_t c) { return std::array{7.0f, -7.0f, 3.25f, -2.75f, 0.0f, -0.25f, 1.0f, 6.75f}[c]; };
  EXPECT_EQ(stored("llm-qat4", 8, given).k, (std::vector<float>{7, -7, 3, -3, 0, 0, 1, 7}));
  EXPECT_EQ(stored("llm-qat4", 8, given).v, (std::vector<float>{7, -7, 3, -3, 0, 0, 1, 7}));
  // It is 127 here: the step of 8 bits is 1. Nothing is below 0, and half of the codes are unused.
  const auto positive = [](uint32_t c) { return c == 3 ? 127.0f : 0.75f * float(c); };
  EXPECT_EQ(stored("llm-qat8", 8, positive).k, (std::vector<float>{0, 1, 2, 127, 3, 4, 5, 5}));
  // 2 bits are -1, 0 and 1 times the scale.
  const auto ternary = [](uint32_t c) { return std::array{-2.0f, 2.0f, 0.75f, 1.25f, -0.75f, -1.25f, 0.0f, 2.0f}[c]; };
  EXPECT_EQ(stored("llm-qat4:lo=int2", 8, ternary).k, (std::vector<float>{-2, 2, 0, 2, 0, -2, 0, 2}));
}

// Channels that are above 127 in some token are outliers: odd ones of keys, the last 16 of values. The largest of the
// others is 127, so that the step of 8 bits is 1.
TEST(SystemsTest, LlmInt8KeepsOutlierChannelsInF16) {
  const auto is_outlier_k = [](uint32_t c) { return c % 2 == 1; };
  const auto is_outlier_v = [](uint32_t c) { return c >= 16; };
  const auto given = [](bool outlier, uint32_t token, uint32_t c) {
    if (outlier) return token == c ? 500.0f + float(c) : 0.25f * float(c + token);  // large once
    return c < 2 ? 127.0f : float(c) + (token % 2 ? -0.25f : 0.25f);
  };
  for (LayerShape shape : kShapes) {
    Random random(303);
    const auto layer = make_layer(shape, "llm-int8");
    Tokens tokens(shape, 32, random);
    for (uint32_t t = 0; t < 32; ++t) {
      for (uint32_t head = 0; head < shape.n_kv_heads; ++head) {
        for (uint32_t c = 0; c < 32; ++c) {
          tokens.key(t, head)[c] = given(is_outlier_k(c), t, c);
          tokens.value(t, head)[c] = given(is_outlier_v(c), t, c);
        }
      }
    }
    put(*layer, 0, cell_range(0, 32), tokens);
    commit(*layer, 0);
    for (const StoredToken& token : layer->dump(0, shape.n_kv_heads - 1)) {
      EXPECT_EQ(token.tier, TokenTier::lo);
      for (uint32_t c = 0; c < 32; ++c) {
        const float k = given(is_outlier_k(c), token.cell, c), v = given(is_outlier_v(c), token.cell, c);
        EXPECT_EQ(token.k[c], is_outlier_k(c) ? k : std::round(k)) << "channel " << c << " of cell " << token.cell;
        EXPECT_EQ(token.v[c], is_outlier_v(c) ? v : std::round(v)) << "channel " << c << " of cell " << token.cell;
      }
    }
  }
  // 16 of 128 channels in f16, 112 in INT8, and a scale.
  EXPECT_DOUBLE_EQ(size_of("llm-int8"), 100.0 * (16 * 16 + 112 * 8 + 16) / (128.0 * 16.0));
}

// Whatever 16 tokens follow each other, their keys reach over four steps in each channel and their values in each group
// of 32 channels: 2 bits hold them exactly.
TEST(SystemsTest, KiviQuantisesKeysByChannelInBlocksThatLeaveTheResidual) {
  const auto key = [](Cell cell, uint32_t c) { return float(1 + c % 3) * float((cell + c) % 4) - float(c); };
  const auto value = [](Cell cell, uint32_t c) { return float((3 * cell + c) % 4) * (c < 32 ? 0.5f : 8.0f); };
  Random random(304);
  for (const uint32_t n_heads : {2u, 6u}) {
    const LayerShape shape{n_heads, 2, 64, 64};
    const auto layer = make_layer(shape, "kivi2");
    const auto put_some = [&](Cell first, uint32_t n) {
      Tokens tokens(shape, n, random);
      for (uint32_t t = 0; t < n; ++t) {
        for (uint32_t head = 0; head < 2; ++head) {
          for (uint32_t c = 0; c < 64; ++c) {
            tokens.key(t, head)[c] = key(first + t, c + head), tokens.value(t, head)[c] = value(first + t, c);
          }
        }
      }
      put(*layer, 0, cell_range(first, n), tokens);
      commit(*layer, 0);
    };
    const auto expect_lo = [&](Cell n_lo, Cell n) {
      EXPECT_EQ(cells_in(*layer, 1, TokenTier::lo), range(0, n_lo)) << n;
      EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi), range(n_lo, n)) << n;
    };
    put_some(0, 200);  // 72 beside the residual: 4 blocks
    expect_lo(64, 200);
    for (Cell cell = 200; cell < 240; ++cell) {
      put_some(cell, 1);
      expect_lo((cell + 1 - 128) / 16 * 16, cell + 1);
    }
    for (uint32_t head = 0; head < 2; ++head) {
      for (const StoredToken& token : layer->dump(0, head)) {
        for (uint32_t c = 0; c < 64; ++c) {
          ASSERT_EQ(token.k[c], key(token.cell, c + head)) << "channel " << c << " of cell " << token.cell;
          ASSERT_EQ(token.v[c], value(token.cell, c)) << "channel " << c << " of cell " << token.cell;
        }
      }
    }
  }
}

// Of 1,600 tokens 128 are in f16. Keys have a scale and a zero for 16 tokens, values for 32 channels: 2 bits and 1.
TEST(SystemsTest, KiviHasTheSizesOfItsFormats) {
  EXPECT_DOUBLE_EQ(size_of("kivi2"), 100.0 * (0.08 * 16.0 + 0.92 * (2.0 + 1.5)) / 16.0);
  EXPECT_DOUBLE_EQ(size_of("kivi4"), 100.0 * (0.08 * 16.0 + 0.92 * (4.0 + 1.5)) / 16.0);
}

TEST(SystemsTest, ASymmetricScaleTakesTwoBytes) {
  const double asymmetric = size_of("rtn4:group=head"), symmetric = size_of("llm-qat4");
  EXPECT_DOUBLE_EQ(asymmetric, 100.0 * (4.0 + 32.0 / 128.0) / 16.0);
  EXPECT_DOUBLE_EQ(symmetric, 100.0 * (4.0 + 16.0 / 128.0) / 16.0);
}

}  // namespace
}  // namespace mikv::test::systems_test
