// SnapKV: what it chooses from small attention made by hand, and that a cache records the last queries of a prompt
// only.
#include "policy/snapkv.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "test_attention.hpp"
#include "test_policy.hpp"

namespace mikv::test::snapkv_test {
namespace {

using policy::snapkv::kRecent;
using policy::snapkv::kWindow;

constexpr LayerShape kShape{6, 2, 32, 32};

std::vector<uint32_t> range(uint32_t first, uint32_t last) {
  std::vector<uint32_t> values(last - first);
  std::iota(values.begin(), values.end(), first);
  return values;
}

std::set<uint32_t> victims_of(const std::vector<float>& scores, const std::vector<uint32_t>& arrivals,
                              uint64_t n_keep) {
  return demoted({.importance = Importance::snapkv}, scores, arrivals, n_keep);
}

// 12 tokens before the window; the window looks at 2, and less at 9.
TEST(SnapKvTest, KnownAnswers) {
  const std::vector<uint32_t> arrivals = range(0, 12 + kWindow);
  std::vector<float> scores(arrivals.size());
  scores[2] = 5.0f, scores[9] = 1.0f;
  scores[20] = 99.0f;  // within the window: neither pooled nor needed
  std::vector<uint32_t> scratch;
  policy::snapkv::settle(scores, arrivals, 0, false, scratch);
  for (uint32_t i = 0; i < 6; ++i) EXPECT_EQ(scores[i], 5.0f) << i;   // 2 and three tokens to either side
  for (uint32_t i = 6; i < 12; ++i) EXPECT_EQ(scores[i], 1.0f) << i;  // 9 and its neighbours
  for (uint32_t i = 12; i < arrivals.size(); ++i) EXPECT_EQ(scores[i], kRecent) << i;

  EXPECT_EQ(victims_of(scores, arrivals, kWindow + 6), (std::set<uint32_t>{6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(victims_of(scores, arrivals, kWindow + 4), (std::set<uint32_t>{0, 1, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(victims_of(scores, arrivals, kWindow + 11), std::set<uint32_t>{6});
  // A budget below the window: the most recent.
  EXPECT_EQ(victims_of(scores, arrivals, 2).count(12 + kWindow - 1), 0u);
  EXPECT_EQ(victims_of(scores, arrivals, 2).count(12 + kWindow - 3), 1u);
}

TEST(SnapKvTest, PoolsAlongTheOrderOfTokensWhateverTheirSlots) {
  std::vector<uint32_t> arrivals = range(0, 8 + kWindow);
  for (size_t i = 4; i < arrivals.size(); ++i) arrivals[i] += 10;  // tokens 4 to 13 were erased
  std::vector<float> scores(arrivals.size());
  scores[3] = 2.0f;
  std::reverse(arrivals.begin(), arrivals.end());
  std::reverse(scores.begin(), scores.end());
  std::vector<uint32_t> scratch;
  policy::snapkv::settle(scores, arrivals, 0, false, scratch);
  for (size_t i = 0; i < arrivals.size(); ++i) {
    EXPECT_EQ(scores[i], arrivals[i] <= 3 ? 2.0f : arrivals[i] < 18 ? 0.0f : kRecent) << arrivals[i];
  }
}

TEST(SnapKvTest, GeneratedTokensCountAsRecent) {
  const std::vector<uint32_t> arrivals = {7, 3, 40, 41, 42};  // hi: two scored, two of the window; one generated
  std::vector<float> scores = {0.5f, 0.25f, kRecent, kRecent, 0.0f};
  std::vector<uint32_t> scratch;
  policy::snapkv::settle(scores, arrivals, 4, true, scratch);
  EXPECT_EQ(scores, (std::vector<float>{0.5f, 0.25f, kRecent, kRecent, kRecent}));
  EXPECT_EQ(scratch.capacity(), 0u);  // a generation step allocates nothing
  EXPECT_EQ(victims_of(scores, arrivals, 4), std::set<uint32_t>{3});
  EXPECT_EQ(victims_of(scores, arrivals, 3), (std::set<uint32_t>{3, 7}));
  EXPECT_EQ(victims_of(scores, arrivals, 2), (std::set<uint32_t>{3, 7, 40}));
}

Request causal(uint32_t n_tokens, uint32_t n_before, Random& random) {
  Request request(kShape, n_tokens, random);
  request.record = true;
  request.set_causal(Mask::Type::f32, n_before + n_tokens, n_before);
  return request;
}

using Scores = std::map<Cell, double>;

/// Column sums over the last n queries of a request.
void add_column_sums(const LayerCache& layer, const Request& request, uint32_t n, uint32_t kv_head, Scores& scores) {
  const std::vector<StoredToken> tokens = stored_tokens(layer, {0}, kv_head);
  for (uint32_t t = request.n_tokens - n; t < request.n_tokens; ++t) {
    for (uint32_t head = kv_head * request.group(); head < (kv_head + 1) * request.group(); ++head) {
      const std::vector<double> w = weights(tokens, request, t, head);
      for (size_t i = 0; i < tokens.size(); ++i) scores[tokens[i].cell] += w[i];
    }
  }
}

/// Bounds as in importance_recording_test.cpp.
void expect_scores(const LayerCache& layer, uint32_t kv_head, Scores scores, uint32_t n_queries) {
  const double relative = 2e-4 + n_queries * kF32Epsilon;
  for (const StoredToken& token : layer.dump(0, kv_head)) {
    const double expected = scores[token.cell];
    ASSERT_LE(std::abs(token.score - expected), relative * expected + 1e-9) << token.cell << " of head " << kv_head;
  }
}

TEST(SnapKvTest, RecordsTheLastQueriesOfThePromptOnly) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    for (const uint32_t n : {1u, 20u, 32u, 33u, 100u, 257u}) {
      Random random(60);
      const auto layer = make_layer(kShape, "snapkv");
      put(*layer, 0, cell_range(0, n), Tokens(kShape, n, random));
      const Request prompt = causal(n, 0, random);
      run(*layer, prompt, 2);
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        Scores scores;
        add_column_sums(*layer, prompt, std::min(n, kWindow), head, scores);
        expect_scores(*layer, head, scores, kWindow * prompt.group());
      }
    }
  });
}

TEST(SnapKvTest, OfAPromptInSeveralCallsTheLastWindowCounts) {
  for (const uint32_t n_last : {36u, 10u, 1u}) {
    Random random(61);
    const auto layer = make_layer(kShape, "snapkv");
    put(*layer, 0, cell_range(0, 64), Tokens(kShape, 64, random));
    const Request first = causal(64, 0, random);
    run(*layer, first);
    Scores scores[kShape.n_kv_heads];
    if (n_last < kWindow) {  // a rest is added
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        add_column_sums(*layer, first, kWindow, head, scores[head]);
      }
    }
    put(*layer, 0, cell_range(64, n_last), Tokens(kShape, n_last, random));
    const Request last = causal(n_last, 64, random);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      add_column_sums(*layer, last, std::min(n_last, kWindow), head, scores[head]);
    }
    run(*layer, last, 3);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) expect_scores(*layer, head, scores[head], 200);
  }
}

/// Cells in hi, which the scores before a commit ask for.
std::set<Cell> chosen(const std::vector<StoredToken>& staged, uint64_t n_keep) {
  const size_t n = staged.size(), n_before = n - kWindow;
  std::vector<std::pair<float, Cell>> pooled;
  for (size_t i = 0; i < n_before; ++i) {
    float best = 0.0f;
    for (size_t j = i < 3 ? 0 : i - 3; j <= std::min(i + 3, n_before - 1); ++j) best = std::max(best, staged[j].score);
    pooled.emplace_back(best, staged[i].cell);
  }
  std::sort(pooled.begin(), pooled.end());
  std::set<Cell> cells;
  for (size_t i = n_before; i < n; ++i) cells.insert(staged[i].cell);
  for (auto each = pooled.rbegin(); cells.size() < n_keep; ++each) cells.insert(each->second);
  return cells;
}

TEST(SnapKvTest, TheFirstCommitFixesTheChoice) {
  for (const char* spec : {"snapkv", "mikv-paper:importance=snapkv", "mikv:importance=snapkv,keep=0.2"}) {
    SCOPED_TRACE(spec);
    Random random(62);
    const auto layer = make_layer(kShape, spec);
    put(*layer, 0, cell_range(0, 300), Tokens(kShape, 300, random));
    run(*layer, causal(300, 0, random));
    std::set<Cell> expected[kShape.n_kv_heads];
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      expected[head] = chosen(sorted_dump(*layer, 0, head), 60);
    }
    commit(*layer, 0);
    std::map<Cell, float> score[kShape.n_kv_heads];
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      std::set<Cell> in_hi;
      for (const StoredToken& token : layer->dump(0, head)) {
        if (token.tier == TokenTier::hi) in_hi.insert(token.cell), score[head][token.cell] = token.score;
      }
      EXPECT_EQ(in_hi, expected[head]);
    }
    for (uint32_t step = 0; step < 20; ++step) {  // generated tokens stay; the prompt's go, by the scores it ended with
      put(*layer, 0, cell_range(300 + step, 1), Tokens(kShape, 1, random));
      Request request(kShape, 1, random);
      request.record = request.commit = true;
      run(*layer, request);
    }
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      float lowest = kRecent, highest_gone = 0.0f;
      for (const StoredToken& token : layer->dump(0, head)) {
        if (token.cell >= 300 - kWindow) {
          EXPECT_EQ(token.tier, TokenTier::hi) << token.cell;
          EXPECT_EQ(token.score, kRecent);
        } else if (token.tier == TokenTier::hi) {
          EXPECT_EQ(token.score, score[head][token.cell]) << token.cell;
          lowest = std::min(lowest, token.score);
        } else if (score[head].count(token.cell)) {
          highest_gone = std::max(highest_gone, score[head][token.cell]);
        }
      }
      EXPECT_LE(highest_gone, lowest);
    }
  }
}

TEST(SnapKvTest, ALaterPromptIsScoredAnew) {
  Random random(63);
  const auto layer = make_layer(kShape, "snapkv:keep=0.5");
  put(*layer, 0, cell_range(0, 100), Tokens(kShape, 100, random));
  run(*layer, causal(100, 0, random));
  commit(*layer, 0);
  put(*layer, 0, cell_range(100, 80), Tokens(kShape, 80, random));
  const Request second = causal(80, 100, random);
  Scores scores;
  add_column_sums(*layer, second, kWindow, 1, scores);
  run(*layer, second, 2);
  expect_scores(*layer, 1, scores, kWindow * second.group());
  commit(*layer, 0);
  uint32_t n_recent = 0;
  for (const StoredToken& token : layer->dump(0, 1)) n_recent += token.tier == TokenTier::hi && token.score == kRecent;
  EXPECT_EQ(n_recent, kWindow);
}

TEST(SnapKvTest, SpecsAndWhatStartsFromWhat) {
  const Spec preset = Spec::parse("snapkv").value();
  EXPECT_EQ(preset.importance, Importance::snapkv);
  EXPECT_EQ(preset.lo, Format::evict);
  EXPECT_EQ(preset.keep, 0.2);
  const Spec retained = Spec::parse("mikv:importance=snapkv").value();
  EXPECT_TRUE(retained.mixed());
  EXPECT_EQ(Spec::parse(retained.to_string()).value(), retained);
  EXPECT_FALSE(Spec::parse("snapkv:recent=0.5").ok());

  const Spec mikv = Spec::parse("mikv").value();
  EXPECT_FALSE(mikv.can_start(preset));  // the attention of all queries is not that of the last ones
  EXPECT_FALSE(retained.can_start(mikv));
  EXPECT_TRUE(retained.can_start(preset));
  const auto layer = make_layer(kShape, "mikv");
  EXPECT_NE(layer->clone(preset).message().find("importance=snapkv"), std::string::npos);
}

}  // namespace
}  // namespace mikv::test::snapkv_test
