// Importance scores are the attention that tokens received: the column sums of the attention weights over all queries
// and over the query heads of the group; and the tokens that a commit demotes are those that the scores say.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "policy/policy.hpp"
#include "test_attention.hpp"

namespace mikv::test::importance_recording_test {
namespace {

constexpr LayerShape kShape{6, 2, 32, 32};

using Scores = std::map<Cell, double>;

/// Adds the column sums of a request, in double precision, from what is stored.
void add_column_sums(const LayerCache& layer, const Request& request, uint32_t kv_head, Scores& scores) {
  const std::vector<StoredToken> tokens = stored_tokens(layer, {0}, kv_head);
  for (uint32_t t = 0; t < request.n_tokens; ++t)
    for (uint32_t head = kv_head * request.group(); head < (kv_head + 1) * request.group(); ++head) {
      const std::vector<double> w = weights(tokens, request, t, head);
      for (size_t i = 0; i < tokens.size(); ++i) scores[tokens[i].cell] += w[i];
    }
}

/// Tokens that have scores (staged and hi) carry what was added up. A weight has the relative error 2d of
/// support/test_attention.cpp, where D = 32, sum|q| max|k| < 32 * 0.8 * 5, scale = 1/sqrt(32), so d < 6e-5 at twice its
/// logit bound; adding n_queries weights rounds each time.
void expect_scores(const LayerCache& layer, uint32_t kv_head, const Scores& scores, uint32_t n_queries) {
  const double relative = 2e-4 + n_queries * kF32Epsilon;
  for (const StoredToken& token : layer.dump(0, kv_head)) {
    if (token.tier != TokenTier::staged && token.tier != TokenTier::hi) continue;
    const auto found = scores.find(token.cell);
    const double expected = found == scores.end() ? 0.0 : found->second;
    ASSERT_LE(std::abs(token.score - expected), relative * expected + 1e-9)
        << "cell " << token.cell << " head " << kv_head;
  }
}

Request causal_prompt(uint32_t n, Random& random, Mask::Type type = Mask::Type::f32) {
  Request request(kShape, n, random);
  request.record = true;
  request.set_causal(type, n, 0);
  return request;
}

TEST(RecordingTest, PromptScoresAreColumnSums) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    Random random(50);
    for (const uint32_t n : {1u, 15u, 16u, 17u, 64u, 100u, 257u}) {
      const auto layer = make_layer(kShape, "mikv");
      put(*layer, 0, cell_range(0, n), Tokens(kShape, n, random));
      const Request request = causal_prompt(n, random, n % 2 ? Mask::Type::f16 : Mask::Type::f32);
      run(*layer, request);
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        Scores scores;
        add_column_sums(*layer, request, head, scores);
        expect_scores(*layer, head, scores, n * request.group());
        double total = 0.0;  // every query and head hands out 1
        for (const StoredToken& token : layer->dump(0, head)) total += token.score;
        EXPECT_NEAR(total, double(n * request.group()), 1e-4 * n * request.group());
      }
    }
  });
}

TEST(RecordingTest, WithSoftcapSinksSlopesAndBiases) {
  Random random(51);
  const auto layer = make_layer(kShape, "mikv");
  put(*layer, 0, cell_range(0, 90), Tokens(kShape, 90, random));
  Scores scores[kShape.n_kv_heads];
  for (const uint32_t n_tokens : {1u, 4u, 33u}) {
    Request request(kShape, n_tokens, random, 3);
    request.record = true;
    request.softcap = 10.0f;
    request.sinks = {1.0f, 0.0f, -1.0f, 2.0f, 3.0f, 0.5f};
    request.slopes = {1.0f, 0.5f, 0.25f, 2.0f, 0.0f, 1.5f};
    request.set_mask(Mask::Type::f32, 80, [&](uint32_t t, uint32_t cell) {
      return (t + cell) % 4 == 0 || t == 2 ? -kInfinity : random.uniform(-1.0f, 1.0f);
    });
    run(*layer, request, 2);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      add_column_sums(*layer, request, head, scores[head]);
      expect_scores(*layer, head, scores[head], 38 * 3);
    }
  }
}

TEST(RecordingTest, NotRecordingLeavesScoresAlone) {
  Random random(52);
  const auto layer = make_layer(kShape, "mikv");
  put(*layer, 0, cell_range(0, 40), Tokens(kShape, 40, random));
  for (const uint32_t n_tokens : {1u, 9u}) {
    Request request(kShape, n_tokens, random);
    run(*layer, request);
  }
  for (const StoredToken& token : layer->dump(0, 0)) EXPECT_EQ(token.score, 0.0f);
}

TEST(RecordingTest, ThreadsDoNotChangeScores) {
  Random random(53);
  const Tokens tokens(kShape, 200, random);
  const Request prompt = causal_prompt(200, random);
  Request step(kShape, 1, random);
  step.record = true;
  std::vector<std::vector<float>> scores;
  for (uint32_t n_threads = 1; n_threads <= 4; ++n_threads) {
    const auto layer = make_layer(kShape, "mikv");
    put(*layer, 0, cell_range(0, 200), tokens);
    run(*layer, prompt, n_threads);
    run(*layer, step, n_threads);
    scores.emplace_back();
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head)
      for (const StoredToken& token : sorted_dump(*layer, 0, head)) scores.back().push_back(token.score);
  }
  // The same weights in another order of addition: 603 roundings of a sum, at worst.
  for (const auto& other : scores)
    for (size_t i = 0; i < other.size(); ++i)
      ASSERT_NEAR(other[i], scores[0][i], 603 * kF32Epsilon * scores[0][i] + 1e-9);
}

/// Generation with commits: at each step the scores add up exactly, and the victim is the lowest of those not recent.
void check_generation(const std::string& spec_text, uint32_t n_prompt, uint32_t n_steps, uint32_t n_threads) {
  SCOPED_TRACE(spec_text);
  Random random(54);
  const auto layer = make_layer(kShape, spec_text);
  const Spec& spec = layer->spec();
  put(*layer, 0, cell_range(0, n_prompt), Tokens(kShape, n_prompt, random));
  const Request prompt = causal_prompt(n_prompt, random);
  run(*layer, prompt, n_threads);
  Scores scores[kShape.n_kv_heads];
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) add_column_sums(*layer, prompt, head, scores[head]);

  for (uint32_t step = 0; step <= n_steps; ++step) {
    const Cell cell = n_prompt + step - 1;  // step 0 is the commit of the prompt
    std::vector<StoredToken> before[kShape.n_kv_heads];
    if (step > 0) {
      put(*layer, 0, cell_range(cell, 1), Tokens(kShape, 1, random));
      Request request(kShape, 1, random);
      request.record = request.commit = true;
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        before[head] = sorted_dump(*layer, 0, head);
        add_column_sums(*layer, request, head, scores[head]);
      }
      run(*layer, request, n_threads);
    } else {
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) before[head] = sorted_dump(*layer, 0, head);
      commit(*layer, 0);
    }
    const uint64_t budget = policy::hi_places(spec.keep, n_prompt + step);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      expect_scores(*layer, head, scores[head], (n_prompt + step) * 3);
      if (testing::Test::HasFatalFailure()) return;
      // Cells arrive in order, so the recents are the highest cells among those that compete.
      std::vector<Cell> candidates, kept;
      for (const StoredToken& token : before[head])
        if (token.tier == TokenTier::hi || token.tier == TokenTier::staged) candidates.push_back(token.cell);
      for (const StoredToken& token : sorted_dump(*layer, 0, head))
        if (token.tier == TokenTier::hi) kept.push_back(token.cell);
      ASSERT_EQ(kept.size(), std::min<uint64_t>(budget, candidates.size())) << "step " << step;
      const size_t n_recent = std::min(candidates.size(), size_t(policy::n_recent(spec.recent, budget)));
      const std::set<Cell> survivors(kept.begin(), kept.end());
      double lowest_kept = kInfinity, highest_gone = 0.0;
      for (size_t i = 0; i < candidates.size(); ++i) {
        const bool stays = survivors.count(candidates[i]) > 0;
        if (i + n_recent >= candidates.size()) {
          ASSERT_TRUE(stays) << "step " << step << ": recent cell " << candidates[i] << " was demoted";
        } else if (stays) {
          lowest_kept = std::min(lowest_kept, scores[head][candidates[i]]);
        } else {
          highest_gone = std::max(highest_gone, scores[head][candidates[i]]);
        }
      }
      // Scores within rounding of each other may go either way.
      ASSERT_LE(highest_gone, lowest_kept * (1.0 + 4e-4) + 2e-9) << "step " << step << " head " << head;
    }
  }
}

TEST(RecordingTest, GenerationDemotesTheLowestThatIsNotRecent) {
  check_generation("h2o", 50, 60, 1);
  check_generation("mikv-paper", 50, 60, 2);
  check_generation("mikv:keep=0.25", 64, 40, 3);
  check_generation("mikv-max:keep=0.5", 33, 40, 4);
  check_generation("h2o:keep=0.02", 20, 90, 1);  // a budget of 0, then 1: nothing but the most recent
}

// Contexts long enough that a step is cut into parts, each of which leaves its share of the logits.
TEST(RecordingTest, LongContexts) {
  Random random(56);
  const uint32_t n_prompt = 6000;
  const auto layer = make_layer(kShape, "mikv:keep=0.9,lo=int3,outlier=none");
  put(*layer, 0, cell_range(0, n_prompt), Tokens(kShape, n_prompt, random));
  Scores scores[kShape.n_kv_heads];
  for (uint32_t step = 0; step < 4; ++step) {
    put(*layer, 0, cell_range(n_prompt + step, 1), Tokens(kShape, 1, random));
    Request request(kShape, 1, random);
    request.record = request.commit = true;
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) add_column_sums(*layer, request, head, scores[head]);
    run(*layer, request, step + 1);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) expect_scores(*layer, head, scores[head], 3 * (step + 1));
    const auto n_cells = n_prompt + step + 1;
    ASSERT_EQ(count_tiers(layer->dump(0, 0)).hi, policy::hi_places(0.9, n_cells));
  }
}

// A chunk of several tokens after a commit (a second turn, or streaming prefill): hi and staged tokens both collect.
TEST(RecordingTest, ChunksAfterACommitAddToo) {
  Random random(55);
  const auto layer = make_layer(kShape, "mikv:keep=0.4,lo=int3,outlier=none");
  Scores scores[kShape.n_kv_heads];
  for (uint32_t chunk = 0; chunk < 4; ++chunk) {
    const uint32_t n_before = 30 * chunk;
    put(*layer, 0, cell_range(n_before, 30), Tokens(kShape, 30, random));
    Request request(kShape, 30, random);
    request.record = true;
    request.set_causal(Mask::Type::f16, n_before + 30, n_before);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) add_column_sums(*layer, request, head, scores[head]);
    run(*layer, request, 1 + chunk);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head)
      expect_scores(*layer, head, scores[head], 30 * 3 * (chunk + 1));
    commit(*layer, 0);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head)
      expect_scores(*layer, head, scores[head], 30 * 3 * (chunk + 1));
  }
}

// A chunk's logits are kept for 10,900 tokens; those of the others are computed again.
TEST(RecordingTest, ChunksOverMoreTokensThanLogitsAreKept) {
  Random random(57);
  const uint32_t n_before = 10900, n = 32;
  const auto layer = make_layer(kShape, "mikv");
  put(*layer, 0, cell_range(0, n_before + n), Tokens(kShape, n_before + n, random));
  Request request(kShape, n, random);
  request.record = true;
  request.set_causal(Mask::Type::f16, n_before + n, n_before);
  run(*layer, request, 2);
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
    Scores scores;
    add_column_sums(*layer, request, head, scores);
    expect_scores(*layer, head, scores, n * request.group());
  }
}

}  // namespace
}  // namespace mikv::test::importance_recording_test
