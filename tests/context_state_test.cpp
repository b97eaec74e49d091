// Context, with a small engine and no model: states as bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "test_context.hpp"

namespace mikv::test::context_state_test {
namespace {

using Wish = SmallEngine::Setup;

using StatesTest = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, StatesTest, testing::Bool(), kind_name);

TEST_P(StatesTest, ASavedSequenceContinuesToTheBit) {
  for (const char* spec : {"full", "mikv", "mikv-paper", "h2o", "kivi4:group=head"}) {
    SmallEngine from(wish(spec)), to(wish(spec));
    ASSERT_TRUE(from.prompt(1, 300).ok());
    ASSERT_TRUE(from.generate(1).ok());
    const std::vector<int32_t> tokens = {5, 6, 7};
    const auto bytes = from.cache().save(1, tokens);
    ASSERT_TRUE(bytes.ok()) << bytes.message();
    EXPECT_EQ(Context::saved_tokens(bytes.value()).value(), tokens);
    ASSERT_TRUE(to.prompt(0, 33).ok()) << "other cells are taken";
    ASSERT_TRUE(to.cache().load(1, bytes.value()).ok());
    EXPECT_EQ(to.cache().last_position(1), 300);
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(from.generate(1).ok());
      ASSERT_TRUE(to.generate(1).ok());
      EXPECT_EQ(from.output(), to.output()) << spec << " token " << i;
    }
  }
}

TEST_P(StatesTest, AWholeContextIsSavedToo) {
  SmallEngine from(wish()), to(wish());
  ASSERT_TRUE(from.prompt(0, 270).ok());
  ASSERT_TRUE(from.prompt(1, 30).ok());
  const auto bytes = from.cache().save(kAllSequences);
  ASSERT_TRUE(bytes.ok());
  ASSERT_TRUE(to.prompt(2, 50).ok());
  ASSERT_TRUE(to.cache().load(kAllSequences, bytes.value()).ok());
  EXPECT_EQ(to.cache().last_position(2), -1) << "it replaces all";
  EXPECT_EQ(from.peek(0), to.peek(0));
  EXPECT_EQ(from.peek(1), to.peek(1));
}

TEST_P(StatesTest, AStateThatIsLoadedIsSavedTheSame) {
  SmallEngine from(wish()), to(wish());
  ASSERT_TRUE(from.prompt(0, 300).ok());
  ASSERT_TRUE(from.generate(0).ok());
  const auto first = from.cache().save(0).value();
  ASSERT_TRUE(to.cache().load(0, first).ok());
  EXPECT_EQ(to.cache().save(0).value(), first);
}

TEST_P(StatesTest, StatesOfOtherModelsAndCachesAreRefusedByName) {
  SmallEngine from(wish());
  ASSERT_TRUE(from.prompt(0, 30).ok());
  const auto bytes = from.cache().save(0).value();
  Wish model = wish();
  model.fingerprint = 8;
  const Status other_model = SmallEngine(model).cache().load(0, bytes);
  EXPECT_EQ(other_model.code(), ErrorCode::mismatch);
  EXPECT_NE(other_model.message().find("another model"), std::string::npos);
  const Status other_cache = SmallEngine(wish("h2o")).cache().load(0, bytes);
  EXPECT_EQ(other_cache.code(), ErrorCode::mismatch);
  EXPECT_NE(other_cache.message().find("another kind of cache"), std::string::npos);
  EXPECT_EQ(SmallEngine(wish()).cache().load(kAllSequences, bytes).code(), ErrorCode::mismatch);
}

TEST_P(StatesTest, DamagedStatesAreRefusedAndChangeNothing) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  const auto bytes = engine.cache().save(0).value();
  for (size_t at = 0; at < bytes.size(); at += 97) {
    auto damaged = bytes;
    damaged[at] ^= 0x10;
    const Status status = engine.cache().load(0, damaged);
    ASSERT_FALSE(status.ok()) << "byte " << at;
    ASSERT_TRUE(status.code() == ErrorCode::damaged_data || status.code() == ErrorCode::mismatch) << status.message();
  }
  for (size_t n = 0; n < bytes.size(); n += 131) {
    ASSERT_FALSE(engine.cache().load(0, std::span(bytes).first(n)).ok()) << n;
  }
  EXPECT_EQ(engine.cache().save(0).value(), bytes);
}

TEST_P(StatesTest, AStateOfMoreCellsThanThereAreIsRefused) {
  SmallEngine from(wish());
  ASSERT_TRUE(from.prompt(0, 300).ok());
  const auto bytes = from.cache().save(0).value();
  Wish small = wish();
  small.n_cells = 100;
  SmallEngine to(small);
  ASSERT_TRUE(to.prompt(0, 10).ok());
  EXPECT_FALSE(to.cache().load(0, bytes).ok());
  EXPECT_EQ(to.cache().last_position(0), 9) << "what it held stays";
}

// ---------------------------------------------------------------- states travel between specs and budgets

TEST_P(StatesTest, AWholeStateOfTheOtherKindIsRefusedAndChangesNothing) {
  Wish other = wish();
  other.unified = !other.unified;
  SmallEngine from(other), to(wish());
  ASSERT_TRUE(from.prompt(0, 300).ok());
  ASSERT_TRUE(from.prompt(1, 40).ok());
  if (other.unified) {  // cells of two sequences
    ASSERT_TRUE(from.cache().copy(0, 2, 0, 100).ok());
  }
  ASSERT_TRUE(to.prompt(0, 300).ok());
  const auto before = to.cache().save(0).value();
  const Status refused = to.cache().load(kAllSequences, from.cache().save(kAllSequences).value());
  EXPECT_EQ(refused.code(), ErrorCode::mismatch) << refused.message();
  EXPECT_EQ(to.cache().last_position(0), 299);
  EXPECT_EQ(to.cache().save(0).value(), before);
}

TEST_P(StatesTest, StatesTravelBetweenSpecsOfAKind) {
  for (const char* spec : {"mikv-max", "mikv-hq", "mikv:keep=0.3,hi=f16,bits=2.2"}) {
    SmallEngine from(wish("mikv")), same(wish("mikv")), to(wish(spec));
    ASSERT_TRUE(from.prompt(0, 300).ok());
    ASSERT_TRUE(from.generate(0).ok());
    const auto bytes = from.cache().save(0).value();
    ASSERT_TRUE(same.cache().load(0, bytes).ok());
    ASSERT_TRUE(to.prompt(1, 300).ok()) << "segments of two kinds are attended to in one step";
    ASSERT_TRUE(to.generate(1).ok());
    const Status status = to.cache().load(0, bytes);
    ASSERT_TRUE(status.ok()) << spec << ": " << status.message();
    // What is loaded is as it was saved, and so is what follows it.
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(same.generate(0).ok());
      ASSERT_TRUE(to.generate(0).ok());
      EXPECT_EQ(to.output(), same.output()) << spec;
      ASSERT_TRUE(to.generate(1).ok());
    }
    EXPECT_EQ(to.cache().spec(), Spec::parse(spec).value());
  }
}

TEST_P(StatesTest, AStateOfBeforeABudgetActedLoadsAfterIt) {
  Wish tight = wish();
  tight.budget = 300 << 10;
  tight.n_cells = 8192;
  SmallEngine engine(tight);
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  const auto before = engine.cache().save(0).value();
  SequenceId last = 0;
  for (int i = 0; i < 60 && engine.cache().figures().n_lowered < 8; ++i) {
    last = 1 + i % 3;
    if (!engine.prompt(last, 300).ok() || !engine.generate(last).ok()) break;
  }
  ASSERT_GT(engine.cache().figures().n_lowered, 0u);
  const auto after = engine.cache().save(0).value();
  ASSERT_TRUE(engine.cache().remove(last).ok());
  const Status loaded = engine.cache().load(0, before);
  EXPECT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_LE(engine.bytes(), tight.budget);
  EXPECT_TRUE(engine.generate(0).ok());
  SmallEngine fresh(tight);
  const Status restarted = fresh.cache().load(0, after);
  EXPECT_TRUE(restarted.ok()) << restarted.message();
  EXPECT_TRUE(fresh.generate(0).ok());
  EXPECT_EQ(fresh.cache().lowered_sequences(), std::vector<SequenceId>{0}) << "it says that it is held below";
}

TEST_P(StatesTest, WhereRoomIsShortAStateIsLoweredWhileItLoads) {
  SmallEngine from(wish());
  ASSERT_TRUE(from.prompt(0, 900).ok());
  ASSERT_TRUE(from.generate(0).ok());
  const auto bytes = from.cache().save(0).value();
  Wish tight = wish();
  tight.budget = from.bytes() * 9 / 10;
  SmallEngine to(tight);
  const Status status = to.cache().load(0, bytes);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LE(to.bytes(), tight.budget);
  EXPECT_EQ(to.cache().lowered_sequences(), std::vector<SequenceId>{0});
  tight.budget = from.bytes() / 4;
  SmallEngine none(tight);
  EXPECT_EQ(none.cache().load(0, bytes).code(), ErrorCode::over_budget);
  EXPECT_EQ(none.cache().last_position(0), -1);
  EXPECT_TRUE(none.cache().lowered_sequences().empty());
}

TEST_P(StatesTest, WhatIsSavedAfterAPromptIsCompressed) {
  SmallEngine from(wish()), to(wish());
  ASSERT_TRUE(from.prompt(0, 600).ok());
  const uint64_t staged = from.cache().memory_usage().n_staged_tokens;
  const auto bytes = from.cache().save(0).value();
  EXPECT_GT(staged, 0u);
  ASSERT_TRUE(to.cache().load(0, bytes).ok());
  EXPECT_EQ(to.cache().memory_usage().n_staged_tokens, 0u);
  ASSERT_TRUE(from.generate(0).ok());
  ASSERT_TRUE(to.generate(0).ok());
  EXPECT_EQ(from.output(), to.output());
}

TEST(StateTest, WithoutCellsForItAStateIsRefusedAndChangesNothing) {
  Wish wish;
  wish.unified = true;
  SmallEngine from(wish);
  ASSERT_TRUE(from.prompt(0, 300).ok());
  const auto bytes = from.cache().save(0).value();
  wish.n_cells = 320;
  SmallEngine to(wish);
  ASSERT_TRUE(to.prompt(0, 10).ok());
  ASSERT_TRUE(to.prompt(1, 50).ok());
  EXPECT_EQ(to.cache().load(0, bytes).code(), ErrorCode::mismatch);
  EXPECT_EQ(to.cache().last_position(0), 9);
  EXPECT_EQ(to.cache().last_position(1), 49);
  EXPECT_TRUE(to.prompt(0, 10).ok());
}

}  // namespace
}  // namespace mikv::test::context_state_test
