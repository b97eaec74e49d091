// Scissorhands: what it chooses from counts made by hand, and that a cache counts the queries to which a token was
// important.
#include "policy/scissorhands.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "test_attention.hpp"
#include "test_policy.hpp"

namespace mikv::test::scissorhands_test {
namespace {

using policy::scissorhands::kHistory;
using policy::scissorhands::kRecent;

constexpr LayerShape kShape{6, 2, 32, 32};

std::set<uint32_t> victims_of(const std::vector<float>& scores, const std::vector<uint32_t>& arrivals,
                              uint64_t n_keep) {
  return demoted({.importance = Importance::scissorhands}, scores, arrivals, n_keep);
}

TEST(ScissorhandsTest, TheLeastOftenImportantGoFirstAndTheLastTenLast) {
  std::vector<uint32_t> arrivals(16);
  std::iota(arrivals.begin(), arrivals.end(), 100u);
  std::vector<float> scores = {3, 0, 7, 1, 1, 9};  // 100 to 105; 106 to 115 are recent, and were important to nobody
  scores.resize(16);
  std::reverse(arrivals.begin(), arrivals.end());  // whatever their slots
  std::reverse(scores.begin(), scores.end());
  EXPECT_EQ(victims_of(scores, arrivals, 15), (std::set<uint32_t>{101}));
  EXPECT_EQ(victims_of(scores, arrivals, 14), (std::set<uint32_t>{101, 103}));  // of equal ones the older
  EXPECT_EQ(victims_of(scores, arrivals, 12), (std::set<uint32_t>{100, 101, 103, 104}));
  EXPECT_EQ(victims_of(scores, arrivals, 9), (std::set<uint32_t>{100, 101, 102, 103, 104, 105, 106}));
}

TEST(ScissorhandsTest, CountsFadeWithGeneratedTokens) {
  const std::vector<uint32_t> arrivals = {0, 1, 2};
  std::vector<uint32_t> scratch;
  std::vector<float> scores = {40.0f, 8.0f, 3.0f};
  policy::scissorhands::settle(scores, arrivals, 0, false, scratch);  // a prompt
  EXPECT_EQ(scores, (std::vector<float>{40.0f, 8.0f, 3.0f}));
  policy::scissorhands::settle(scores, arrivals, 2, true, scratch);  // two in hi, one generated
  EXPECT_FLOAT_EQ(scores[0], 40.0f * 399.0f / 400.0f);
  EXPECT_FLOAT_EQ(scores[1], 8.0f * 399.0f / 400.0f);
  EXPECT_EQ(scores[2], 3.0f);
  EXPECT_EQ(scratch.capacity(), 0u);  // a generation step allocates nothing
}

Request causal(uint32_t n_tokens, uint32_t n_before, Random& random) {
  Request request(kShape, n_tokens, random);
  request.record = true;
  request.set_causal(Mask::Type::f32, n_before + n_tokens, n_before);
  return request;
}

struct Counts {
  std::vector<double> least, most;  ///< [cell]: how many attentions are above the mean, by far and if barely below it
};

/// Adds those of the last n queries, over the cells that each sees.
void add_counts(const LayerCache& layer, const Request& request, uint32_t n, uint32_t kv_head, Counts& counts) {
  const std::vector<StoredToken> tokens = stored_tokens(layer, {0}, kv_head);
  counts.least.resize(1000), counts.most.resize(1000);
  for (uint32_t t = request.n_tokens - n; t < request.n_tokens; ++t) {
    double n_seen = 0.0;
    for (Cell cell = 0; cell < layer.n_cells(0); ++cell) n_seen += request.mask_at(t, cell) != -kInfinity;
    for (uint32_t head = kv_head * request.group(); head < (kv_head + 1) * request.group(); ++head) {
      const std::vector<double> w = weights(tokens, request, t, head);
      for (size_t i = 0; i < tokens.size(); ++i) {
        counts.least[tokens[i].cell] += w[i] * n_seen > 1.002;
        counts.most[tokens[i].cell] += w[i] * n_seen > 1.0;
      }
    }
  }
}

void expect_counted(const LayerCache& layer, uint32_t kv_head, const Counts& counts) {
  for (const StoredToken& token : layer.dump(0, kv_head)) {
    if (token.tier != TokenTier::staged && token.tier != TokenTier::hi) continue;
    ASSERT_GE(token.score, counts.least[token.cell]) << token.cell << " of head " << kv_head;
    ASSERT_LE(token.score, counts.most[token.cell]) << token.cell << " of head " << kv_head;
    ASSERT_EQ(token.score, std::floor(token.score));
  }
}

TEST(ScissorhandsTest, CountsTheLastQueriesOfAPrompt) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    for (const uint32_t n : {1u, 20u, 33u, 100u, 430u}) {
      Random random(310);
      const auto layer = make_layer(kShape, "scissorhands");
      put(*layer, 0, cell_range(0, n), Tokens(kShape, n, random));
      const Request prompt = causal(n, 0, random);
      run(*layer, prompt, 2);
      double total = 0.0;
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        Counts counts;
        add_counts(*layer, prompt, std::min(n, kHistory), head, counts);
        expect_counted(*layer, head, counts);
        for (const StoredToken& token : layer->dump(0, head)) total += token.score;
      }
      EXPECT_EQ(total > 0.0, n > 1);  // the only token that a query sees is no more than the mean
    }
  });
}

TEST(ScissorhandsTest, SoftcapSlopesAndHiddenCells) {
  Random random(311);
  const auto layer = make_layer(kShape, "scissorhands");
  put(*layer, 0, cell_range(0, 90), Tokens(kShape, 90, random));
  Counts counts[kShape.n_kv_heads];
  for (const uint32_t n_tokens : {1u, 4u, 33u}) {
    Request request(kShape, n_tokens, random, 3);
    request.record = true;
    request.softcap = 10.0f;
    request.slopes = {1.0f, 0.5f, 0.25f, 2.0f, 0.0f, 1.5f};
    request.set_mask(Mask::Type::f16, 80, [&](uint32_t t, uint32_t cell) {
      return (t + cell) % 4 == 0 ? -kInfinity : random.uniform(-1.0f, 1.0f);
    });
    run(*layer, request, 2);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      add_counts(*layer, request, n_tokens, head, counts[head]);
      expect_counted(*layer, head, counts[head]);
    }
  }
}

// Tokens that were lost still count in the number of those that a query sees: the mean of a long context is low.
TEST(ScissorhandsTest, GeneratedTokensCountAndFade) {
  Random random(312);
  const auto layer = make_layer(kShape, "scissorhands");
  put(*layer, 0, cell_range(0, 100), Tokens(kShape, 100, random));
  run(*layer, causal(100, 0, random));
  commit(*layer, 0);
  for (Cell cell = 100; cell < 110; ++cell) {
    put(*layer, 0, cell_range(cell, 1), Tokens(kShape, 1, random));
    Request step = causal(1, cell, random);
    step.commit = true;
    Counts counts[kShape.n_kv_heads];
    std::vector<float> before[kShape.n_kv_heads];
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      before[head].resize(cell + 1);
      for (const StoredToken& token : layer->dump(0, head)) before[head][token.cell] = token.score;
      add_counts(*layer, step, 1, head, counts[head]);
    }
    run(*layer, step, 2);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      uint32_t n_recent = 0;
      for (const StoredToken& token : layer->dump(0, head)) {
        if (token.tier != TokenTier::hi) continue;
        const float left = token.cell == cell ? 1.0f : 399.0f / 400.0f;
        EXPECT_GE(token.score, left * float(before[head][token.cell] + counts[head].least[token.cell]) * 0.9999f);
        EXPECT_LE(token.score, left * float(before[head][token.cell] + counts[head].most[token.cell]) * 1.0001f);
        n_recent += token.cell + kRecent > cell;
      }
      EXPECT_EQ(n_recent, kRecent);
      EXPECT_EQ(count_tiers(layer->dump(0, head)).hi, (cell + 1) / 5);
    }
  }
}

TEST(ScissorhandsTest, SpecsAndWhatStartsFromWhat) {
  const Spec preset = Spec::parse("scissorhands").value();
  EXPECT_EQ(preset.importance, Importance::scissorhands);
  EXPECT_EQ(preset.lo, Format::evict);
  const Spec retained = Spec::parse("mikv:importance=scissorhands").value();
  EXPECT_TRUE(retained.mixed());
  EXPECT_EQ(Spec::parse(retained.to_string()).value(), retained);
  EXPECT_FALSE(Spec::parse("scissorhands:recent=0.5").ok());
  EXPECT_FALSE(Spec::parse("mikv").value().can_start(preset));  // attention is not how often it is above the mean
  EXPECT_TRUE(retained.can_start(preset));
}

}  // namespace
}  // namespace mikv::test::scissorhands_test
