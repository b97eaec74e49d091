// FastGen: which pattern a KV head picks from attention made by hand, and that heads of a cache keep to theirs.
#include "policy/fastgen.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "mikv/inspect.hpp"
#include "test_attention.hpp"
#include "test_context.hpp"
#include "test_policy.hpp"

namespace mikv::test::fastgen_test {
namespace {

using policy::fastgen::Pattern;

// 100 tokens; 30 places are for frequent tokens and 30 for local ones, beside 4 for the first.
const Spec kSpec = Spec::parse("fastgen").value();

/// The scores of 100 tokens: `each` for those from `first` up to `last`, beside what token 0 has.
std::vector<float> scores_of(float first_token, uint32_t first, uint32_t last, float each) {
  std::vector<float> scores(100);
  for (uint32_t i = first; i < last; ++i) scores[i] = each;
  scores[0] = first_token;
  return scores;
}

uint8_t picked(const std::vector<float>& scores, const Spec& spec = kSpec) {
  std::vector<uint32_t> arrivals(scores.size()), scratch;
  std::iota(arrivals.begin(), arrivals.end(), 0u);
  return policy::fastgen::pick(spec, scores, arrivals, scores.size(), scratch);
}

TEST(FastGenTest, AHeadPicksTheSmallestSetThatRecoversEnough) {
  EXPECT_EQ(picked(scores_of(10, 0, 0, 0)), Pattern::kSpecial);
  EXPECT_EQ(picked(scores_of(19, 50, 51, 1)), Pattern::kSpecial);   // 0.95 of the attention
  EXPECT_EQ(picked(scores_of(18, 50, 51, 1)), Pattern::kFrequent);  // less
  EXPECT_EQ(picked(scores_of(10, 20, 50, 1)), Pattern::kFrequent);  // 30 tokens
  EXPECT_EQ(picked(scores_of(10, 50, 100, 1)), Pattern::kLocal);    // 50 tokens, the last 30 among them
  EXPECT_EQ(picked(scores_of(10, 80, 100, 1)), Pattern::kLocal);    // neighbours of the queries
  EXPECT_EQ(picked(scores_of(10, 4, 64, 1)), Pattern::kAll);        // 60, but few of them local
  EXPECT_EQ(picked(scores_of(1, 0, 100, 1)), Pattern::kAll);        // 64 of 100
  EXPECT_EQ(picked(scores_of(0, 0, 0, 0)), Pattern::kAll);          // nothing recorded
  EXPECT_EQ(picked(scores_of(1, 0, 100, 1), Spec::parse("fastgen:recovery=0.6").value()), Pattern::kLocal);
  EXPECT_EQ(picked(scores_of(1, 0, 100, 1), Spec::parse("fastgen:recovery=0").value()), Pattern::kSpecial);
}

// A minus says what is punctuation.
TEST(FastGenTest, PunctuationIsASetOfItsOwn) {
  std::vector<float> scores = scores_of(10, 50, 51, 10);
  EXPECT_EQ(picked(scores), Pattern::kFrequent);
  scores[50] = -10;
  EXPECT_EQ(picked(scores), Pattern::kPunctuation);
  scores[60] = 5;
  EXPECT_EQ(picked(scores), Pattern::kFrequent);  // what it has counts there too
  scores[0] = -1000;
  EXPECT_EQ(picked(scores), Pattern::kSpecial);  // the first tokens are that already
}

TEST(FastGenTest, PlacesOfThePatterns) {
  const auto places = [](uint8_t pattern, uint64_t n) {
    const policy::Places of = policy::fastgen::places(pattern, kSpec, n, 7);
    return std::pair(of.total, of.recent);
  };
  EXPECT_EQ(places(Pattern::kNone, 100), std::pair(uint64_t{100}, uint64_t{0}));
  EXPECT_EQ(places(Pattern::kSpecial, 100), std::pair(uint64_t{4}, uint64_t{0}));
  EXPECT_EQ(places(Pattern::kPunctuation, 100), std::pair(uint64_t{11}, uint64_t{0}));
  EXPECT_EQ(places(Pattern::kFrequent, 100), std::pair(uint64_t{41}, uint64_t{0}));
  EXPECT_EQ(places(Pattern::kLocal, 100), std::pair(uint64_t{71}, uint64_t{30}));
  EXPECT_EQ(places(Pattern::kAll, 100), std::pair(uint64_t{100}, uint64_t{0}));
  EXPECT_EQ(places(Pattern::kSpecial, 3), std::pair(uint64_t{3}, uint64_t{0}));
}

TEST(FastGenTest, TheFirstStayThenTheRecentThenTheHeaviest) {
  std::vector<float> scores = {0, 0, 0, 0, 5, 1, 3, 0, 0, 0};
  std::vector<uint32_t> arrivals(10);
  std::iota(arrivals.begin(), arrivals.end(), 0u);
  const auto kept = [&](uint64_t total, uint64_t recent) {
    const policy::Places places{total, recent};
    std::set<uint32_t> left(arrivals.begin(), arrivals.end());
    for (const uint32_t gone : demoted({Importance::fastgen, places.share_of_recent(), 4, 0}, scores, arrivals, total))
      left.erase(gone);
    return left;
  };
  EXPECT_EQ(kept(4, 0), (std::set<uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(kept(6, 0), (std::set<uint32_t>{0, 1, 2, 3, 4, 6}));
  EXPECT_EQ(kept(8, 2), (std::set<uint32_t>{0, 1, 2, 3, 4, 6, 8, 9}));
  EXPECT_EQ(kept(2, 0), (std::set<uint32_t>{0, 1}));
  scores[5] = -1;
  scores[7] = -0.0f;
  EXPECT_EQ(kept(6, 0), (std::set<uint32_t>{0, 1, 2, 3, 5, 7}));
  EXPECT_EQ(kept(5, 0), (std::set<uint32_t>{0, 1, 2, 3, 7}));  // the older goes first
  EXPECT_EQ(kept(8, 1), (std::set<uint32_t>{0, 1, 2, 3, 4, 5, 7, 9}));
}

std::set<Cell> cells_in(const LayerCache& layer, uint32_t head, TokenTier tier) {
  std::set<Cell> cells;
  for (const StoredToken& token : layer.dump(0, head)) {
    if (token.tier == tier) cells.insert(token.cell);
  }
  return cells;
}

std::set<Cell> range(Cell first, Cell last) {
  std::set<Cell> cells;
  for (Cell cell = first; cell < last; ++cell) cells.insert(cell);
  return cells;
}

// KV head h looks at token 0 alone, at three tokens and at one that comes later, at all alike: the third keeps all.
void put_for_heads(LayerCache& layer, Cell first, uint32_t n, Random& random) {
  Tokens tokens(layer.shape(), n, random);
  std::fill(tokens.k.begin(), tokens.k.end(), 0.0f);
  for (uint32_t t = 0; t < n; ++t) {
    const Cell cell = first + t;
    if (cell == 0) tokens.key(t, 0)[0] = 16.0f;
    if (cell % 20 == 10 && cell != 70 && cell != 90 && layer.shape().n_kv_heads > 1) tokens.key(t, 1)[0] = 16.0f;
  }
  put(layer, 0, cell_range(first, n), tokens);
}

Request request_of(const LayerShape& shape, uint32_t n, Cell n_before, Random& random) {
  Request request(shape, n, random);
  std::fill(request.q.begin(), request.q.end(), 0.0f);
  for (uint32_t i = 0; i < n * shape.n_heads; ++i) request.q[i * shape.head_dim_k] = 1.0f;
  request.scale = 1.0f;
  request.record = true;
  request.set_causal(Mask::Type::f32, n_before + n, n_before);
  return request;
}

TEST(FastGenTest, HeadsOfACacheKeepToTheirPatterns) {
  for (const uint32_t n_heads : {3u, 6u}) {
    const LayerShape shape{n_heads, 3, 32, 32};
    Random random(320);
    const auto layer = make_layer(shape, "fastgen");
    put_for_heads(*layer, 0, 100, random);
    run(*layer, request_of(shape, 100, 0, random), 2);
    commit(*layer, 0);
    EXPECT_EQ(cells_in(*layer, 0, TokenTier::hi), range(0, 4));
    EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi).size(), 34u);
    for (const Cell cell : {0u, 1u, 2u, 3u, 10u, 30u, 50u}) {
      EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi).count(cell), 1u) << cell;
    }
    EXPECT_EQ(cells_in(*layer, 2, TokenTier::hi), range(0, 100));
    EXPECT_EQ(cells_in(*layer, 0, TokenTier::evicted), range(4, 100));

    for (Cell cell = 100; cell < 130; ++cell) {
      put_for_heads(*layer, cell, 1, random);
      Request step = request_of(shape, 1, cell, random);
      step.commit = true;
      run(*layer, step, 2);
    }
    EXPECT_EQ(cells_in(*layer, 0, TokenTier::hi), range(0, 4));
    EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi).size(), 4u + 39u);  // floor(0.3 x 130)
    EXPECT_EQ(cells_in(*layer, 1, TokenTier::hi).count(110), 1u);
    EXPECT_EQ(cells_in(*layer, 2, TokenTier::hi), range(0, 130));
  }
}

TEST(FastGenTest, WithOneKvHeadForAllQueryHeads) {
  const LayerShape shape{4, 1, 32, 32};
  Random random(321);
  const auto layer = make_layer(shape, "fastgen:lo=int4");  // what no set has is retained
  put_for_heads(*layer, 0, 100, random);
  run(*layer, request_of(shape, 100, 0, random));
  commit(*layer, 0);
  EXPECT_EQ(cells_in(*layer, 0, TokenTier::hi), range(0, 4));
  EXPECT_EQ(cells_in(*layer, 0, TokenTier::lo), range(4, 100));
}

using FastGenContextTest = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, FastGenContextTest, testing::Bool(), kind_name);

std::set<Position> in_hi(SmallEngine& engine, SequenceId sequence, int layer, uint32_t head) {
  std::set<Position> positions;
  const std::vector<TokenState> tokens = tokens_of(engine.cache(), layer, head, sequence).value();
  for (const TokenState& token : tokens) {
    if (token.tier == TokenTier::hi) positions.insert(token.position);
    EXPECT_GE(token.score, 0.0f);
  }
  return positions;
}

void expect_in_hi(SmallEngine& engine, SequenceId sequence, const std::set<Position>& expected) {
  for (const auto& [layer, head] : {std::pair(0, 0u), {0, 1u}, {1, 0u}, {1, 1u}}) {
    EXPECT_EQ(in_hi(engine, sequence, layer, head), expected) << "layer " << layer << ", KV head " << head;
  }
}

std::set<Position> first_and_every_third(Position n) {
  std::set<Position> positions{1, 2};
  for (Position p = 0; p < n; p += 3) positions.insert(p);
  return positions;
}

TEST_P(FastGenContextTest, PunctuationIsKeptWhereTheEngineNamesIt) {
  using Outputs = SmallEngine::Outputs;
  SmallEngine::Setup setup = wish("fastgen:recovery=0.2");
  setup.n_at_once = 64;  // several micro-batches, of both sequences where each has a stream of its own
  setup.punctuation_every = 3;
  const auto read = [](SmallEngine& engine) {
    EXPECT_TRUE(engine.step({{0, 300, Outputs::none}, {1, 250, Outputs::none}}).ok());
    EXPECT_TRUE(engine.step({{1, 30, Outputs::last}, {0, 60, Outputs::last}}).ok());
    for (int i = 0; i < 8; ++i) EXPECT_TRUE(engine.step({{1, 1}, {0, 1}}).ok());
  };
  SmallEngine engine(setup);
  read(engine);
  expect_in_hi(engine, 0, first_and_every_third(368));
  expect_in_hi(engine, 1, first_and_every_third(288));

  // What is punctuation is saved with the tokens, and copied.
  SmallEngine other(setup);
  ASSERT_TRUE(other.prompt(3, 40).ok());
  ASSERT_TRUE(other.cache().load(2, engine.cache().save(1).value()).ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(other.generate(2).ok());
  expect_in_hi(other, 2, first_and_every_third(293));
  ASSERT_TRUE(other.cache().copy(2, 0).ok());
  expect_in_hi(other, 0, first_and_every_third(293));

  setup.punctuation_every = 0;
  SmallEngine unnamed(setup);
  read(unnamed);
  EXPECT_NE(in_hi(unnamed, 0, 0, 0), first_and_every_third(368)) << "the first set is too little";
}

// A prompt that waits is saved with it too.
TEST_P(FastGenContextTest, StagedPunctuationIsSaved) {
  SmallEngine::Setup setup = wish("fastgen:recovery=0.2");
  setup.punctuation_every = 3;
  SmallEngine engine(setup), other(setup);
  ASSERT_TRUE(engine.step({{0, 240, SmallEngine::Outputs::none}}).ok());
  ASSERT_TRUE(other.cache().load(1, engine.cache().save(0).value()).ok());
  ASSERT_TRUE(other.prompt(1, 20).ok());
  ASSERT_TRUE(other.generate(1).ok());
  expect_in_hi(other, 1, first_and_every_third(261));
}

TEST(FastGenTest, SpecsAndWhatStartsFromWhat) {
  EXPECT_EQ(kSpec.recovery, 0.95);
  EXPECT_EQ(kSpec.keep, 0.6);
  const Spec other = Spec::parse("fastgen:recovery=0.8").value();
  EXPECT_EQ(Spec::parse(other.to_string()).value(), other);
  EXPECT_FALSE(Spec::parse("fastgen:recent=0.5").ok());
  EXPECT_FALSE(Spec::parse("mikv").value().can_start(kSpec));
  EXPECT_TRUE(other.can_start(kSpec));
}

}  // namespace
}  // namespace mikv::test::fastgen_test
