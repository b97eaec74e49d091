// Bits between heads: what an error of the lo tier does, whose heads get bits for it, and that a model has as many of
// them as before.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "policy/bit_allocation.hpp"
#include "policy/error_weight.hpp"
#include "test_attention.hpp"
#include "test_cache.hpp"

namespace mikv::test::share_bits_test {
namespace {

TEST(ErrorWeightTest, IsWhatTheFormulaSays) {
  Random random(120);
  constexpr uint32_t kDimK = 24, kDimV = 16, kRows = 5, kTokens = 200, kRecent = 6;
  const std::vector<float> q = random.normals(kRows * kDimK), k = random.normals(kTokens * kDimK),
                           v = random.normals(kTokens * kDimV);
  const std::vector<uint32_t> arrivals = {30, 90, 90, 150, 200};
  std::vector<double> mean(kDimV);
  for (double& m : mean) m = random.normal();
  policy::ErrorWeight weight(q, arrivals, mean, kDimK, kRecent);
  const auto is_lo = [](uint32_t token) { return token % 3 != 0; };
  for (uint32_t i = 0; i < kTokens; ++i) weight.add(&k[i * kDimK], &v[i * kDimV], i, is_lo(i));
  double error = 0.0, output = 0.0;
  for (uint32_t r = 0; r < kRows; ++r) {
    std::vector<double> p(arrivals[r]), out(kDimV);
    for (uint32_t i = 0; i < p.size(); ++i) {
      for (uint32_t c = 0; c < kDimK; ++c) p[i] += double(q[r * kDimK + c]) * k[i * kDimK + c];
      p[i] = std::exp(p[i]);
    }
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (uint32_t i = 0; i < p.size(); ++i) {
      double distance = 0.0;
      for (uint32_t c = 0; c < kDimV; ++c) {
        distance += std::pow(v[i * kDimV + c] - mean[c], 2);
        out[c] += p[i] / sum * v[i * kDimV + c];
      }
      if (is_lo(i) && i + kRecent < arrivals[r]) error += std::pow(p[i] / sum, 2) * distance;
    }
    for (const double x : out) output += x * x;
  }
  EXPECT_NEAR(weight.sums().error, error, 1e-4 * error);
  EXPECT_NEAR(weight.sums().output, output, 1e-4 * output);
}

TEST(ErrorWeightTest, NothingSeenIsNothing) {
  const policy::ErrorWeight weight({1.0f, 2.0f}, {7}, std::vector<double>{0.0}, 2, 0);
  EXPECT_EQ(weight.sums().error, 0.0);
  EXPECT_EQ(weight.sums().output, 0.0);
}

TEST(ShareBitsTest, SumStaysAndHeavierHeadsHaveNoFewer) {
  Random random(121);
  for (int trial = 0; trial < 300; ++trial) {
    const uint32_t n_tiles = 2 + random.below(30);
    const double each = n_tiles + random.below(5 * n_tiles + 1) + (trial % 2 ? random.uniform(-0.9f, 0.9f) : 0.0);
    std::vector<double> weights(1 + random.below(60));
    for (double& weight : weights) weight = random.below(8) ? std::exp(random.uniform(-12.0f, 12.0f)) : 0.0;
    const std::vector<uint32_t> bits = policy::share_bits(weights, each, n_tiles);
    const double possible = std::clamp(each, 1.0 * n_tiles, 6.0 * n_tiles);
    ASSERT_EQ(std::accumulate(bits.begin(), bits.end(), uint64_t{0}),
              uint64_t(possible * double(weights.size()) + 1e-6));
    for (size_t a = 0; a < bits.size(); ++a) {
      ASSERT_GE(bits[a], n_tiles);
      ASSERT_LE(bits[a], 6 * n_tiles);
      ASSERT_LE(std::abs(double(bits[a]) - possible), policy::kMostMoreBits * n_tiles + 1.0);
      for (size_t b = 0; b < bits.size(); ++b) {
        ASSERT_TRUE(weights[a] <= weights[b] || bits[a] + 1 >= bits[b]);
      }
    }
  }
}

TEST(ShareBitsTest, EqualWeightsAreEqualBits) {
  for (const double weight : {0.0, 3.0}) {
    for (const uint32_t bits : policy::share_bits(std::vector<double>(9, weight), 21, 8)) EXPECT_EQ(bits, 21u);
  }
}

constexpr LayerShape kShape{4, 2, 64, 64};
constexpr uint32_t kPrompt = 600;
constexpr const char* kSpec = "mikv:keep=0.05,bits=2.5";

/// A prompt in which KV head 0 looks tokens up, one for each query, far back; head 1 averages over everything.
struct Prompt {
  Tokens tokens;
  Request request;

  explicit Prompt(Random& random) : tokens(kShape, kPrompt, random), request(kShape, kPrompt, random) {
    request.record = true;
    request.set_causal(Mask::Type::f32, kPrompt, 0);
    for (uint32_t t = 0; t < kPrompt; ++t) {
      for (uint32_t head = 0; head < kShape.n_heads; ++head) {
        float* q = const_cast<float*>(request.query(t, head));
        for (uint32_t c = 0; c < kShape.head_dim_k; ++c)
          q[c] = head < 2 ? 3.0f * tokens.key(t * 7 % (t / 2 + 1), 0)[c] : 0.1f * q[c];
      }
    }
  }
  std::unique_ptr<LayerCache> feed(const char* spec = kSpec, uint32_t n_threads = 1) {
    auto layer = make_layer(kShape, spec, 1024);
    put(*layer, 0, cell_range(0, kPrompt), tokens);
    run(*layer, request, n_threads);
    return layer;
  }
  /// Squares of what values of the lo tier are off by.
  double error(const LayerCache& layer, uint32_t head, SegmentId segment = 0) {
    double sum = 0.0;
    for (const StoredToken& token : layer.dump(segment, head)) {
      if (token.tier != TokenTier::lo) continue;
      for (uint32_t c = 0; c < kShape.head_dim_v; ++c)
        sum += std::pow(double(token.v[c]) - tokens.value(token.cell, head)[c], 2);
    }
    return sum;
  }
};

TEST(ShareBitsTest, HeadThatLooksTokensUpHasSmallerErrors) {
  Random random(122);
  Prompt prompt(random);
  const auto equal = prompt.feed(), shared = prompt.feed();
  ASSERT_TRUE(share_bits(*shared, 0).ok());
  commit(*equal, 0);
  commit(*shared, 0);
  EXPECT_LT(prompt.error(*shared, 0), 0.5 * prompt.error(*equal, 0));
  EXPECT_GT(prompt.error(*shared, 1), 1.5 * prompt.error(*equal, 1));
  // Tiers are rounded to pages.
  EXPECT_NEAR(double(shared->bytes_used()), double(equal->bytes_used()), 0.01 * double(equal->bytes_used()) + 8192);

  // What attention gives is closer to what it was.
  const auto full = prompt.feed("full");
  std::vector<double> errors;
  for (LayerCache* layer : {equal.get(), shared.get()}) {
    const std::vector<float> want = run(*full, prompt.request), got = run(*layer, prompt.request);
    double error = 0.0;
    for (size_t i = 0; i < want.size(); ++i) error += std::pow(double(want[i]) - got[i], 2);
    errors.push_back(error);
  }
  EXPECT_LT(errors[1], 0.6 * errors[0]);
}

// The head that looks tokens up has more bits than its share in what follows too, although no query has said so there.
TEST(ShareBitsTest, WhatFollowsKeepsThem) {
  Random random(142);
  Prompt prompt(random);
  const auto layer = prompt.feed();
  ASSERT_TRUE(share_bits(*layer, 0).ok());
  commit(*layer, 0);
  ASSERT_TRUE(layer->continue_segment(0, 1).ok());
  for (const SegmentId segment : {1u, 2u}) {
    put(*layer, segment, cell_range(0, kPrompt), prompt.tokens);
    ASSERT_TRUE(share_bits(*layer, segment).ok());
    commit(*layer, segment);
  }
  EXPECT_LT(prompt.error(*layer, 0, 1), 0.5 * prompt.error(*layer, 0, 2));
}

TEST(ShareBitsTest, BelongsToUnfrozenMixedSegments) {
  Random random(123);
  Prompt prompt(random);
  for (const char* spec : {"full", "mikv-paper", "h2o", "mikv:importance=window,keep=0.1"}) {
    const auto layer = prompt.feed(spec);
    EXPECT_TRUE(share_bits(*layer, 0).ok()) << spec;
    commit(*layer, 0);
    const uint64_t bytes = layer->bytes_used();
    EXPECT_TRUE(share_bits(*layer, 0).ok()) << spec;
    EXPECT_EQ(layer->bytes_used(), bytes) << spec;
  }
  const auto empty = make_layer(kShape, kSpec);
  EXPECT_TRUE(share_bits(*empty, 0).ok());
  EXPECT_TRUE(mikv::share_bits({}, 0).ok());
}

// Samples are part of what is saved, and do not depend on which thread took them.
TEST(ShareBitsTest, ThreadsAndSavedSegmentsGiveTheSameBits) {
  Random random(124);
  Prompt prompt(random);
  const auto one = prompt.feed(), many = prompt.feed(kSpec, 3), loaded = make_layer(kShape, kSpec, 1024);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(one->save_segment(0, cell_range(0, kPrompt), bytes).ok());
  auto segment = loaded->load_segment(bytes, kPrompt);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(loaded->adopt_segment(0, std::move(segment).value(), cell_range(0, kPrompt)).ok());
  for (LayerCache* layer : {one.get(), many.get(), loaded.get()}) {
    ASSERT_TRUE(share_bits(*layer, 0).ok());
    commit(*layer, 0);
  }
  for (uint32_t head = 0; head < 2; ++head) {
    const double error = prompt.error(*one, head);
    EXPECT_EQ(prompt.error(*many, head), error);
    EXPECT_EQ(prompt.error(*loaded, head), error);
  }
}

// What layers are committed to, alone or by threads, with a limit of memory, under which layers follow each other, or
// without, and where heads were weighed a few at a time.
TEST(ShareBitsTest, AnyNumberOfThreadsCommitsToTheSameBytes) {
  for (const uint64_t limit : {uint64_t{0}, uint64_t{1} << 30}) {
    std::vector<std::vector<uint8_t>> expected;
    for (const uint32_t n_threads : {1u, 2u, 7u}) {
      Random random(125);
      Prompt first(random), second(random);
      const auto a = first.feed(), b = second.feed(), c = first.feed();
      LayerCache* const together[] = {a.get(), b.get(), c.get()};
      for (LayerCache* layer : together) layer->account()->set_limit(limit);
      if (n_threads == 2) {
        for (const uint64_t n : {4u, 2u, 0u}) EXPECT_EQ(weigh_heads(together, 0, 4, n_threads).value(), n);
      }
      ASSERT_TRUE(mikv::share_bits(together, 0, n_threads).ok());
      ASSERT_TRUE(LayerCache::commit(together, 0, 0, n_threads).ok());
      std::vector<std::vector<uint8_t>> bytes(3);
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(together[i]->n_staged(0), 0u);
        ASSERT_TRUE(together[i]->save_segment(0, cell_range(0, kPrompt), bytes[i]).ok());
      }
      if (expected.empty()) expected = bytes;
      EXPECT_TRUE(bytes == expected) << n_threads << " threads, limit " << limit;
    }
  }
}

// Layers give each other bits; on how many threads they are looked at does not matter.
TEST(ShareBitsTest, LayersShareWithEachOther) {
  Random random(126);
  Prompt steep(random), flat(random);
  for (float& q : flat.request.q) q *= 0.05f;
  std::vector<double> errors;
  for (const uint32_t n_threads : {1u, 3u}) {
    const auto equal = steep.feed(), first = steep.feed(), second = flat.feed(), third = flat.feed();
    LayerCache* const together[] = {first.get(), second.get(), third.get()};
    ASSERT_TRUE(mikv::share_bits(together, 0, n_threads).ok());
    commit(*equal, 0);
    uint64_t bytes = 0;
    for (LayerCache* layer : together) {
      commit(*layer, 0);
      bytes += layer->bytes_used();
    }
    EXPECT_NEAR(double(bytes), 3.0 * double(equal->bytes_used()), 0.03 * double(equal->bytes_used()) + 3 * 8192);
    EXPECT_GT(std::abs(double(first->bytes_used()) - double(equal->bytes_used())), 0.05 * double(equal->bytes_used()));
    errors.push_back(steep.error(*first, 0));
  }
  EXPECT_EQ(errors[0], errors[1]);
}

// Fewer bits for all: a head keeps what it has beyond the others, in a cache that was loaded too.
TEST(ShareBitsTest, LoweringKeepsTheDifference) {
  Random random(125);
  Prompt prompt(random);
  const auto layer = prompt.feed(), loaded = make_layer(kShape, kSpec, 1024);
  ASSERT_TRUE(share_bits(*layer, 0).ok());
  commit(*layer, 0);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, kPrompt), bytes).ok());
  auto segment = loaded->load_segment(bytes, kPrompt);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(loaded->adopt_segment(0, std::move(segment).value(), cell_range(0, kPrompt)).ok());
  const uint64_t before = layer->bytes_used();
  for (LayerCache* cache : {layer.get(), loaded.get()}) {
    const double difference = prompt.error(*cache, 1) / prompt.error(*cache, 0);
    ASSERT_TRUE(cache->lower(0, {0.05, 2.25}).ok());
    EXPECT_LT(cache->bytes_used(), before);
    EXPECT_GT(prompt.error(*cache, 1) / prompt.error(*cache, 0), 0.5 * difference);
  }
  EXPECT_EQ(prompt.error(*layer, 0), prompt.error(*loaded, 0));
}

}  // namespace
}  // namespace mikv::test::share_bits_test
