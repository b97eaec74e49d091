// What modifies attention: masks of both types, hidden rows, softcap, sinks, ALiBi slopes, gaps between rows; one at a
// time and all together, for a generation step and a prompt, on every SIMD target.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "test_attention.hpp"

namespace mikv::test::attention_masks_test {
namespace {

constexpr LayerShape kShape{6, 2, 64, 40};
constexpr uint32_t kCommitted = 150, kStaged = 21, kCells = kCommitted + kStaged;
constexpr const char* kSpecs[] = {
    "full", "rtn3", "mikv", "mikv-paper", "mikv-max", "h2o", "mikv:keep=0.3,hi=int4,lo=int2"};

class MaskTest : public testing::TestWithParam<const char*> {
 protected:
  MaskTest() : random_(40), layer_(make_layer(kShape, GetParam())) {
    put(*layer_, 0, cell_range(0, kCommitted), Tokens(kShape, kCommitted, random_));
    Request prompt(kShape, 3, random_);
    prompt.record = true;
    run(*layer_, prompt);
    commit(*layer_, 0);
    put(*layer_, 0, cell_range(kCommitted, kStaged), Tokens(kShape, kStaged, random_));
  }

  Request request(uint32_t n_tokens, size_t gap = 0) { return Request(kShape, n_tokens, random_, gap); }

  void check(Request& request) {
    const Expected expected = expect(*layer_, {0}, request);
    for_each_target([&](const std::string& target) {
      for (const bool record : {false, true}) {
        request.record = record;
        ASSERT_TRUE(matches(run(*layer_, request, record ? 2 : 1), expected)) << target << ", record " << record;
      }
    });
  }

  Random random_;
  std::unique_ptr<LayerCache> layer_;
};

constexpr Mask::Type kTypes[] = {Mask::Type::f16, Mask::Type::f32};
constexpr uint32_t kTokenCounts[] = {1, 2, 5, 37};

TEST_P(MaskTest, Causal) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t n_tokens : kTokenCounts)
      for (const uint32_t first_visible : {0u, 14u, 15u, 16u, 100u, kCells - n_tokens}) {
        SCOPED_TRACE(std::to_string(n_tokens) + " tokens from cell " + std::to_string(first_visible));
        Request r = request(n_tokens);
        r.set_causal(type, kCells, first_visible);
        check(r);
        if (HasFatalFailure()) return;
      }
}

TEST_P(MaskTest, RandomlyHiddenCellsAndFiniteBiases) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t n_tokens : kTokenCounts)
      for (const uint32_t hidden_share : {0u, 50u, 98u}) {
        Request r = request(n_tokens);
        r.set_mask(type, kCells, [&](uint32_t, uint32_t) {
          return random_.below(100) < hidden_share ? -kInfinity : random_.uniform(-4.0f, 4.0f);
        });
        check(r);
        if (HasFatalFailure()) return;
      }
}

TEST_P(MaskTest, MaskOfFewerOrMoreColumnsThanCells) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t columns : {1u, 15u, 16u, 17u, 149u, 150u, 160u, kCells + 1, 1000u}) {
      Request r = request(3);
      r.set_mask(type, columns, [&](uint32_t, uint32_t cell) { return cell % 7 == 3 ? -kInfinity : 0.25f; });
      check(r);
      if (HasFatalFailure()) return;
    }
}

TEST_P(MaskTest, QueriesThatSeeNothingGetZeros) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t n_tokens : kTokenCounts)
      for (const bool with_sinks : {false, true}) {
        Request r = request(n_tokens);
        if (with_sinks) r.sinks.assign(kShape.n_heads, 1.0f);
        r.set_mask(type, kCells, [&](uint32_t t, uint32_t cell) { return t % 2 == 0 || cell > 9 ? -kInfinity : 0.0f; });
        check(r);
        if (HasFatalFailure()) return;
        const std::vector<float> out = run(*layer_, r);
        for (size_t i = 0; i < size_t{kShape.n_heads} * kShape.head_dim_v; ++i) ASSERT_EQ(out[i], 0.0f);
      }
}

TEST_P(MaskTest, OneVisibleCellIsItsValue) {
  for (const uint32_t only : {0u, 7u, 16u, 149u, 150u, kCells - 1}) {
    Request r = request(2);
    r.set_mask(Mask::Type::f16, kCells, [&](uint32_t, uint32_t cell) { return cell == only ? -3.0f : -kInfinity; });
    check(r);
    if (HasFatalFailure()) return;
  }
}

TEST_P(MaskTest, Softcap) {
  for (const float softcap : {0.5f, 5.0f, 50.0f})
    for (const uint32_t n_tokens : kTokenCounts) {
      Request r = request(n_tokens);
      r.softcap = softcap;
      r.set_causal(Mask::Type::f32, kCells, kCells - n_tokens);
      check(r);
      if (HasFatalFailure()) return;
    }
}

TEST_P(MaskTest, Sinks) {
  for (const float base : {-30.0f, 0.0f, 8.0f, 60.0f})
    for (const uint32_t n_tokens : kTokenCounts) {
      Request r = request(n_tokens);
      for (uint32_t head = 0; head < kShape.n_heads; ++head) r.sinks.push_back(base + float(head));
      check(r);
      if (HasFatalFailure()) return;
    }
}

TEST_P(MaskTest, AlibiSlopes) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t n_tokens : kTokenCounts) {
      Request r = request(n_tokens);
      for (uint32_t head = 0; head < kShape.n_heads; ++head) r.slopes.push_back(1.0f / float(2u << head));
      r.set_mask(type, kCells, [&](uint32_t t, uint32_t cell) {
        const int age = int(kCells - n_tokens + t) - int(cell);
        return age < 0 ? -kInfinity : -float(age) / 8.0f;
      });
      check(r);
      if (HasFatalFailure()) return;
    }
}

TEST_P(MaskTest, EverythingTogether) {
  for (const Mask::Type type : kTypes)
    for (const uint32_t n_tokens : kTokenCounts)
      for (const size_t gap : {1, 11}) {
        Request r = request(n_tokens, gap);
        r.softcap = 15.0f;
        r.scale = 0.3f;
        for (uint32_t head = 0; head < kShape.n_heads; ++head) {
          r.slopes.push_back(head % 2 ? 0.0f : 0.5f + float(head));
          r.sinks.push_back(float(head) - 2.0f);
        }
        r.set_mask(type, kCells - 5, [&](uint32_t t, uint32_t cell) {
          return (cell + t) % 5 == 0 ? -kInfinity : random_.uniform(-2.0f, 2.0f);
        });
        check(r);
        if (HasFatalFailure()) return;
      }
}

// Logits far apart: the running maximum moves, and all but a few weights vanish without NaN.
TEST_P(MaskTest, LogitsOfManyHundreds) {
  for (const uint32_t n_tokens : kTokenCounts) {
    Request r = request(n_tokens);
    r.set_mask(Mask::Type::f32, kCells, [&](uint32_t, uint32_t) { return random_.uniform(-900.0f, 900.0f); });
    check(r);
    if (HasFatalFailure()) return;
    // f16 masks of engines hide with the lowest finite half instead of -inf; a row of them still sums to 1.
    r.set_mask(Mask::Type::f16, kCells, [&](uint32_t, uint32_t cell) { return cell % 3 ? -65504.0f : 0.0f; });
    check(r);
    if (HasFatalFailure()) return;
  }
}

TEST_P(MaskTest, NoQueryTokens) {
  Request r = request(0);
  EXPECT_TRUE(run(*layer_, r).empty());
}

INSTANTIATE_TEST_SUITE_P(Specs, MaskTest, testing::ValuesIn(kSpecs), name_of_spec);

}  // namespace
}  // namespace mikv::test::attention_masks_test
