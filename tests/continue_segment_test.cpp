// A text in several segments: the places for recent tokens are where its last tokens are (share_bits_test.cpp: heads
// keep their bits).
#include <gtest/gtest.h>

#include <algorithm>

#include "policy/policy.hpp"
#include "test_attention.hpp"
#include "test_cache.hpp"

namespace mikv::test::continue_segment_test {
namespace {

constexpr LayerShape kShape{4, 2, 64, 64};
constexpr uint32_t kFirst = 600, kSecond = 300, kCells = 1200;
constexpr const char* kSpec = "mikv:keep=0.1,recent=0.75";

void append(LayerCache& layer, SegmentId segment, uint32_t first, uint32_t n, Random& random) {
  Tokens tokens(kShape, n, random);
  put(layer, segment, cell_range(first, n), tokens);
  commit(layer, segment);
}

/// Whether the n latest of a segment are all in hi.
bool latest_are_hi(const LayerCache& layer, SegmentId segment, uint32_t head, uint32_t n) {
  const std::vector<StoredToken> tokens = layer.dump(segment, head);
  uint32_t last = 0, n_hi = 0;
  for (const StoredToken& token : tokens) last = std::max(last, token.cell);
  for (const StoredToken& token : tokens) n_hi += token.tier == TokenTier::hi && token.cell + n > last;
  return n_hi == n;
}

TEST(ContinueSegmentTest, PlacesForRecentTokensPassOn) {
  Random random(140);
  const auto layer = make_layer(kShape, kSpec, kCells);
  append(*layer, 0, 0, kFirst, random);
  const uint64_t first_hi = policy::hi_places(0.1, kFirst), passed_on = policy::n_recent(0.75, first_hi);
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) ASSERT_EQ(count_tiers(layer->dump(0, head)).hi, first_hi);

  ASSERT_TRUE(layer->continue_segment(0, 1).ok());
  append(*layer, 1, kFirst, kSecond, random);
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
    const auto first = count_tiers(layer->dump(0, head)), second = count_tiers(layer->dump(1, head));
    EXPECT_EQ(first.hi, first_hi - passed_on);
    EXPECT_EQ(first.hi + first.lo, kFirst);
    EXPECT_EQ(second.hi, policy::hi_places(0.1, kSecond) + passed_on);
    EXPECT_TRUE(
        latest_are_hi(*layer, 1, head, uint32_t(policy::n_recent(0.75, policy::hi_places(0.1, kSecond)) + passed_on)));
  }
  // And on: what the second had got goes to the third, where one token after the other is generated.
  ASSERT_TRUE(layer->continue_segment(1, 2).ok());
  append(*layer, 2, kFirst + kSecond, 150, random);
  for (uint32_t i = 0; i < 20; ++i) append(*layer, 2, kFirst + kSecond + 150 + i, 1, random);
  const uint64_t recent = policy::n_recent(0.75, policy::hi_places(0.1, kFirst + kSecond));
  EXPECT_EQ(count_tiers(layer->dump(1, 0)).hi,
            policy::hi_places(0.1, kSecond) - policy::n_recent(0.75, policy::hi_places(0.1, kSecond)));
  EXPECT_EQ(count_tiers(layer->dump(2, 0)).hi, policy::hi_places(0.1, 170) + recent);
  EXPECT_TRUE(latest_are_hi(*layer, 2, 0, uint32_t(recent)));
}

TEST(ContinueSegmentTest, SavedSegmentsGoOn) {
  Random random(141);
  const auto layer = make_layer(kShape, kSpec, kCells), other = make_layer(kShape, kSpec, kCells);
  append(*layer, 0, 0, kFirst, random);
  ASSERT_TRUE(layer->continue_segment(0, 1).ok());
  append(*layer, 1, kFirst, kSecond, random);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(layer->save_segment(1, cell_range(kFirst, kSecond), bytes).ok());
  auto segment = other->load_segment(bytes, kSecond);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(other->adopt_segment(1, std::move(segment).value(), cell_range(kFirst, kSecond)).ok());
  append(*layer, 1, kFirst + kSecond, 40, random);
  append(*other, 1, kFirst + kSecond, 40, random);
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
    EXPECT_EQ(count_tiers(other->dump(1, head)).hi, count_tiers(layer->dump(1, head)).hi);
  }
}

TEST(ContinueSegmentTest, OnlyInAnEmptyOne) {
  Random random(143);
  const auto layer = make_layer(kShape, kSpec, kCells);
  append(*layer, 0, 0, kFirst, random);
  append(*layer, 1, kFirst, kSecond, random);
  const uint64_t hi = count_tiers(layer->dump(0, 0)).hi;
  EXPECT_FALSE(layer->continue_segment(0, 1).ok());
  EXPECT_FALSE(layer->continue_segment(0, 0).ok());
  EXPECT_FALSE(layer->continue_segment(0, kMaxSegments).ok());
  EXPECT_EQ(count_tiers(layer->dump(0, 0)).hi, hi);
  EXPECT_TRUE(layer->continue_segment(7, 8).ok());  // nothing to go on from
}

}  // namespace
}  // namespace mikv::test::continue_segment_test
