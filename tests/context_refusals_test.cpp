// Context: calls and states that do not fit it are refused, and change nothing.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "context/context_impl.hpp"
#include "session/container.hpp"
#include "session/saved_context.hpp"
#include "test_context.hpp"

namespace mikv::test::context_refusals_test {
namespace {

using Wish = SmallEngine::Setup;

using RefusalsOnBothKinds = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, RefusalsOnBothKinds, testing::Bool(), kind_name);

TEST(ContextRefusals, SharedTokensNeedAUnifiedContext) {
  SmallEngine engine;
  Batch batch;
  batch.tokens = {{0, false, 0}, {1, true, 0}};
  batch.shared = {{0, 1}};
  EXPECT_EQ(engine.cache().begin_step(batch).code(), ErrorCode::invalid_argument);
  (void)engine.cache().end_step(false);
  EXPECT_TRUE(impl_of(engine.cache()).sequences.seen_by(1).empty());
}

// A state whose sequences were changed; its checksums are right.
std::vector<uint8_t> with_sequences(const std::vector<uint8_t>& state,
                                    const std::vector<session::SavedSequence>& sequences) {
  constexpr uint32_t kSequencesKind = 4;
  std::vector<session::Section> sections;
  for (const session::SectionView& view : session::unpack(state).value().sections) {
    sections.push_back({view.kind, view.a, view.b, {view.data.begin(), view.data.end()}});
    if (view.kind == kSequencesKind) sections.back().data = session::sequence_bytes(sequences);
  }
  return session::pack(sections);
}

TEST(ContextRefusals, SequencesOfASplitContextShareNoLoadedSegment) {
  SmallEngine from, to;
  ASSERT_TRUE(from.prompt(0, 30).ok());
  ASSERT_TRUE(from.prompt(1, 30).ok());
  const std::vector<uint8_t> state = from.cache().save(kAllSequences).value();
  const auto load = [&](const std::vector<session::SavedSequence>& sequences) {
    return to.cache().load(kAllSequences, with_sequences(state, sequences));
  };
  EXPECT_TRUE(load({{0, 0, {0}}, {1, 1, {1}}}).ok()) << "as it was saved";
  EXPECT_EQ(load({{0, 0, {0}}, {1, 0, {0, 1}}}).code(), ErrorCode::damaged_data) << "seen by two";
  EXPECT_EQ(load({{0, 1, {1}}, {1, 0, {0}}}).code(), ErrorCode::damaged_data) << "of another stream";
  EXPECT_EQ(load({{0, 0, {0}}, {0, 1, {1}}}).code(), ErrorCode::damaged_data) << "a sequence twice";
  ASSERT_TRUE(to.generate(0).ok()) << "what was there before stays";
}

TEST(ContextRefusals, KeysAndValuesOfAStepAreOfTheSameTokens) {
  const auto begun = [](SmallEngine& engine) {
    Batch batch;
    for (Position p = 0; p < 10; ++p) batch.tokens.push_back({0, p == 9, p});
    return engine.cache().begin_step(batch);
  };
  const std::vector<float> rows(10 * 32), q(10 * 64);
  std::vector<float> out(10 * 64);
  AttendArgs args;
  args.q = q.data();
  args.out = out.data();
  args.q_token_stride = args.out_token_stride = 64;
  args.q_head_stride = args.out_head_stride = 16;
  args.n_tokens = 10;
  {
    SmallEngine engine;
    ASSERT_TRUE(begun(engine).ok());
    ASSERT_TRUE(engine.cache().store(0, {}, rows.data(), 32, nullptr, 0, 10).ok());
    const Status fewer = engine.cache().store(0, {}, nullptr, 0, rows.data(), 32, 5);
    EXPECT_NE(fewer.message().find("as many tokens"), std::string::npos) << fewer.message();
    EXPECT_FALSE(engine.cache().end_step(true).ok());
  }
  {
    SmallEngine engine;
    ASSERT_TRUE(begun(engine).ok());
    ASSERT_TRUE(engine.cache().store(0, {}, rows.data(), 32, nullptr, 0, 10).ok());
    const Status attended = engine.cache().attend(0, {&args, 1});
    EXPECT_NE(attended.message().find("without values"), std::string::npos) << attended.message();
    EXPECT_FALSE(engine.cache().end_step(true).ok());
  }
  SmallEngine engine;
  ASSERT_TRUE(begun(engine).ok());
  ASSERT_TRUE(engine.cache().store(0, {}, rows.data(), 32, nullptr, 0, 10).ok());
  EXPECT_FALSE(engine.cache().end_step(true).ok()) << "values never came";
}

TEST(ContextRefusals, AThreadOutOfRangeIsNoSuccess) {
  SmallEngine engine;
  ASSERT_TRUE(engine.prompt(0, 4).ok());
  EXPECT_FALSE(engine.cache().attend(0, {}, 0, 0).ok());
  EXPECT_FALSE(engine.cache().attend(0, {}, 2, 2).ok());
  const auto none = [](uint32_t, std::span<const Cell>, std::span<float>) { return 0u; };
  EXPECT_FALSE(engine.cache().rotate_keys(0, none, 0, 0).ok());
}

TEST_P(RefusalsOnBothKinds, ASnapshotOfAnotherContextIsRefused) {
  Wish small = wish();
  small.n_sequences = 1;
  small.n_cells = 256;
  SmallEngine from(wish()), to(small);
  ASSERT_TRUE(from.prompt(3, 300).ok());
  ASSERT_TRUE(to.prompt(0, 20).ok());
  const auto before = to.peek(0);
  const Spec spec = to.cache().spec();
  EXPECT_EQ(to.cache().restore(from.cache().snapshot().value(), spec).code(), ErrorCode::mismatch);
  EXPECT_EQ(to.cache().restore(nullptr, spec).code(), ErrorCode::mismatch);
  EXPECT_EQ(to.peek(0), before);
}

TEST_P(RefusalsOnBothKinds, ASnapshotMakesSequencesWhole) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 40).ok());
  const auto snapshot = engine.cache().snapshot().value();
  engine.cache().invalidate(0, Error{"for the test"});
  ASSERT_FALSE(engine.generate(0).ok());
  ASSERT_TRUE(engine.cache().restore(snapshot, engine.cache().spec()).ok());
  EXPECT_TRUE(engine.generate(0).ok());
}

TEST_P(RefusalsOnBothKinds, ACopyDoesNotMendWhatIsIncomplete) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 20).ok());
  ASSERT_TRUE(engine.prompt(1, 20).ok());
  engine.cache().invalidate(1, Error{"for the test"});
  ASSERT_TRUE(engine.cache().copy(0, 1).ok());
  // A copy replaces a sequence of a split context, and is added to one of a unified context.
  EXPECT_EQ(engine.generate(1).ok(), !GetParam());
}

// A budget of so many KiB, and prompts that pass through the layers at once.
class BudgetRefusals : public BothKinds {
 protected:
  Wish tight(uint64_t kib) const {
    Wish tight = wish();
    tight.budget = kib << 10;
    tight.n_cells = tight.n_ubatch = 10000;
    return tight;
  }
};
INSTANTIATE_TEST_SUITE_P(Context, BudgetRefusals, testing::Bool(), kind_name);

TEST_P(BudgetRefusals, WhatCannotFitCostsNobodyAnything) {
  SmallEngine engine(tight(150));
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  const uint64_t before = engine.bytes();
  for (const uint32_t n : {5000, 2500, 1200, 600, 300}) {  // as programs do: half of it next
    const Status status = engine.prompt(1, n);
    if (n >= 2500) {
      EXPECT_EQ(status.code(), ErrorCode::over_budget) << n;
    }
    if (status) break;
  }
  EXPECT_TRUE(engine.cache().lowered_sequences().empty());
  EXPECT_EQ(engine.cache().figures().n_lowered, 0u);
  ASSERT_TRUE(engine.cache().remove(1).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_NEAR(double(engine.bytes()), double(before), 2048.0);
}

TEST_P(BudgetRefusals, RetriesAfterARefusalCostTheOthersNothing) {
  SmallEngine engine(tight(150));
  ASSERT_TRUE(engine.prompt(0, 500).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  ASSERT_TRUE(engine.prompt(2, 40).ok()) << "it waits for the rest of its prompt";
  for (uint32_t n = 6000; n > 300; n = n * 9 / 10) {
    if (engine.prompt(1, n).ok()) break;
    EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 4u * 40) << n;
  }
  EXPECT_EQ(engine.cache().figures().n_lowered, 0u);
}

TEST_P(BudgetRefusals, ALargerBudgetForgetsWhatWasRefused) {
  uint64_t n_lowered = 0;
  for (uint64_t larger = 200 << 10; larger <= 700 << 10; larger += 20 << 10) {
    SmallEngine engine(tight(100)), fresh(tight(100));
    for (SmallEngine* each : {&engine, &fresh}) ASSERT_TRUE(each->prompt(0, 300).ok());
    ASSERT_EQ(engine.prompt(1, 5000).code(), ErrorCode::over_budget);
    for (SmallEngine* each : {&engine, &fresh}) each->cache().set_budget(larger);
    const Status expected = fresh.prompt(1, 2500), got = engine.prompt(1, 2500);
    EXPECT_EQ(got.ok(), expected.ok()) << larger << " " << got.message();
    n_lowered += fresh.cache().figures().n_lowered;
  }
  EXPECT_GT(n_lowered, 0u) << "what a refused prompt may not do";
}

TEST(ContextRefusals, MessagesNameTheLimitThatAppliesAndAllThatItCounts) {
  Wish wish;
  wish.account = std::make_shared<MemoryAccount>();
  wish.account->set_limit(128 << 10);
  SmallEngine other(wish), engine(wish);
  ASSERT_TRUE(other.prompt(0, 600).ok());
  const Status refused = engine.prompt(0, 2000);
  ASSERT_EQ(refused.code(), ErrorCode::over_budget);
  EXPECT_NE(refused.message().find("KV budget 128 KiB"), std::string::npos) << refused.message();
  EXPECT_EQ(refused.message().find("beside 0 B"), std::string::npos) << refused.message();
}

}  // namespace
}  // namespace mikv::test::context_refusals_test
