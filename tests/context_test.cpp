// Context, with a small engine and no model: steps, compression, sequences, budgets, snapshots, errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "codec/fp16.hpp"
#include "context/context_impl.hpp"
#include "test_context.hpp"

namespace mikv::test::context_test {
namespace {

using Outputs = SmallEngine::Outputs;
using Wish = SmallEngine::Setup;

using OnBothKinds = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, OnBothKinds, testing::Bool(), kind_name);

// ---------------------------------------------------------------- creation and layers

TEST(ContextTest, NumbersOutOfRangeAreRefused) {
  for (const auto& change : std::vector<void (*)(ContextOptions&)>{
           [](ContextOptions& o) { o.n_sequences = 0; }, [](ContextOptions& o) { o.n_sequences = 5000; },
           [](ContextOptions& o) { o.n_threads = 0; }, [](ContextOptions& o) { o.n_ubatch = 0; },
           [](ContextOptions& o) { o.n_cells = kMaxCells + 1; }}) {
    ContextOptions options;
    change(options);
    const auto context = Context::create(options);
    ASSERT_FALSE(context.ok());
    EXPECT_EQ(context.error().code, ErrorCode::invalid_argument);
  }
}

TEST(ContextTest, ALayerMayBeDeclaredAgainButNotChanged) {
  SmallEngine engine;
  EXPECT_TRUE(engine.cache().add_layer(0, kSmallShape).ok());
  EXPECT_EQ(engine.cache().add_layer(0, {4, 2, 32, 32}).code(), ErrorCode::unsupported);
  EXPECT_EQ(engine.cache().add_layer(7, {5, 2, 16, 16}).code(), ErrorCode::unsupported);
  EXPECT_FALSE(engine.cache().add_layer(-1, kSmallShape).ok());
  EXPECT_EQ(engine.cache().layers(), (std::vector<int>{0, 1}));
}

TEST(ContextTest, UnknownLayersAreRefused) {
  SmallEngine engine;
  ASSERT_TRUE(engine.prompt(0, 4).ok());
  EXPECT_FALSE(engine.cache().set_rope(9, {}).ok());
  EXPECT_FALSE(engine.cache().store(9, {}, nullptr, 0, nullptr, 0).ok());
  EXPECT_FALSE(engine.cache().attend(9, {}).ok());
  EXPECT_FALSE(engine.cache().rotate_keys(9, {}).ok());
}

// ---------------------------------------------------------------- steps

TEST_P(OnBothKinds, AttentionIsWhatTheFormulaSays) {
  for (const char* spec : {"full", "mikv", "h2o", "rtn4"}) {
    SmallEngine engine(wish(spec));
    ASSERT_TRUE(engine.prompt(0, 300).ok());
    ASSERT_TRUE(engine.prompt(1, 40).ok());
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine.generate(0).ok());
    // The same queries over the same cache, by the formula.
    const auto got = engine.peek(0);
    ASSERT_EQ(got.size(), size_t{2 * 4 * 16});
    EXPECT_TRUE(std::ranges::all_of(got, [](float x) { return std::isfinite(x); })) << spec;
  }
}

TEST_P(OnBothKinds, WithTheFullCacheNeighboursChangeNothing) {
  SmallEngine alone(wish("full")), beside(wish("full"));
  ASSERT_TRUE(alone.prompt(0, 100).ok());
  ASSERT_TRUE(beside.prompt(1, 70).ok());
  ASSERT_TRUE(beside.prompt(0, 100).ok());
  ASSERT_TRUE(beside.prompt(2, 30).ok());
  EXPECT_LT(largest_difference(alone.peek(0), beside.peek(0)), 1e-5);
}

TEST_P(OnBothKinds, SequencesOfOneStepGetWhatTheyGetAlone) {
  SmallEngine together(wish("full")), apart(wish("full"));
  ASSERT_TRUE(together.step({{0, 20, Outputs::last}, {1, 30, Outputs::last}}).ok());
  ASSERT_TRUE(apart.prompt(0, 20).ok());
  ASSERT_TRUE(apart.prompt(1, 30).ok());
  EXPECT_LT(largest_difference(together.peek(0), apart.peek(0)), 1e-5);
  EXPECT_LT(largest_difference(together.peek(1), apart.peek(1)), 1e-5);
}

TEST_P(OnBothKinds, APromptIsCompressedByTheTokenThatFollows) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_lo_tokens, 0u);
  ASSERT_TRUE(engine.generate(0).ok());
  const MemoryUsage usage = engine.cache().memory_usage();
  EXPECT_EQ(usage.n_staged_tokens, 0u);
  EXPECT_EQ(usage.n_hi_tokens, 4u * 24) << "floor(0.08 * 301) in each of 2 layers and 2 heads";
  EXPECT_EQ(usage.n_hi_tokens + usage.n_lo_tokens, 4u * 301);
}

TEST_P(OnBothKinds, APromptThatNobodyContinuesIsCompressedByTheNextStep) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.prompt(1, 5).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 4u * 5);
}

TEST_P(OnBothKinds, FewerThan256TokensStayExact) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 254).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_lo_tokens, 0u);
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_GT(engine.cache().memory_usage().n_lo_tokens, 0u);
}

TEST_P(OnBothKinds, DraftsAreNotCompressed) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  ASSERT_TRUE(engine.step({{0, 5, Outputs::all}}).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 4u * 5);
}

TEST_P(OnBothKinds, AStreamedPromptIsCompressedAsItIsRead) {
  Wish streaming = wish("mikv:prefill=streaming");
  streaming.n_ubatch = 256;
  SmallEngine engine(streaming);
  ASSERT_TRUE(engine.prompt(0, 1300).ok());
  EXPECT_GT(engine.cache().memory_usage().n_lo_tokens, 0u);
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 0u);
}

TEST_P(OnBothKinds, LayersThatNobodyAttendsToAreCompressedByTheEndOfTheStep) {
  const Wish of = wish();
  ContextOptions options;
  options.spec = Spec::parse("mikv").value();
  options.unified = of.unified;
  auto context = Context::create(options).value();
  ASSERT_TRUE(context->add_layer(0, kSmallShape).ok());
  const std::vector<float> rows(300 * 32, 0.5f);
  const auto put = [&](uint32_t first, uint32_t n) {
    Batch batch;
    for (uint32_t i = 0; i < n; ++i) batch.tokens.push_back({0, i + 1 == n, Position(first + i)});
    EXPECT_TRUE(context->begin_step(batch).ok());
    EXPECT_TRUE(context->store(0, {}, rows.data(), 32, rows.data(), 32, n).ok());
    EXPECT_TRUE(context->end_step().ok());
  };
  put(0, 300);
  put(300, 1);
  EXPECT_EQ(context->memory_usage().n_staged_tokens, 0u);
}

TEST_P(OnBothKinds, KeysAndValuesMayComeApart) {
  for (const bool keys_first : {true, false}) {
    ContextOptions options;
    options.spec = Spec::parse("full").value();
    options.unified = GetParam();
    auto context = Context::create(options).value();
    ASSERT_TRUE(context->add_layer(0, kSmallShape).ok());
    Batch batch;
    batch.tokens = {{0, false, 0}, {0, true, 1}};
    ASSERT_TRUE(context->begin_step(batch).ok());
    const std::vector<float> rows(2 * 32, 0.25f);
    const auto half = [&](bool keys) {
      return context->store(0, {}, keys ? rows.data() : nullptr, 32, keys ? nullptr : rows.data(), 32, 2);
    };
    EXPECT_TRUE(half(keys_first).ok());
    EXPECT_TRUE(half(!keys_first).ok());
    EXPECT_TRUE(context->end_step().ok());
    EXPECT_EQ(context->memory_usage().n_elements, 2u * 64);
    std::vector<uint16_t> k(64), v(64);
    EXPECT_EQ(context->read_f16(0, 0, k.data(), 32, v.data(), 32), 2u);
    EXPECT_EQ(k[0], 0x3400) << "0.25 as a half";
    EXPECT_EQ(v[63], 0x3400);
  }
}

TEST_P(OnBothKinds, MoreTokensThanTheBatchHasAreRefused) {
  SmallEngine engine(wish());
  Batch batch;
  batch.tokens = {{0, true, 0}};
  ASSERT_TRUE(engine.cache().begin_step(batch).ok());
  const std::vector<float> rows(5 * 32);
  EXPECT_FALSE(engine.cache().store(0, {}, rows.data(), 32, rows.data(), 32, 5).ok());
  EXPECT_FALSE(engine.cache().end_step().ok());
  EXPECT_TRUE(engine.prompt(0, 3).ok()) << "the next step is a new one";
}

TEST_P(OnBothKinds, AStepThatFailsLeavesNothing) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 20).ok());
  Batch batch;
  batch.tokens = {{0, true, 20}};
  ASSERT_TRUE(engine.cache().begin_step(batch).ok());
  engine.cache().fail(Error{ErrorCode::engine, "the engine stopped"});
  const Status failed = engine.cache().end_step();
  EXPECT_EQ(failed.code(), ErrorCode::engine);
  EXPECT_EQ(engine.cache().failure().message(), "the engine stopped");
  EXPECT_EQ(engine.cache().last_position(0), 19);
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_elements, 21u * 2 * 64);
}

TEST_P(OnBothKinds, AFullTableOfCellsIsAnError) {
  Wish small = wish();
  small.n_cells = 32;
  SmallEngine engine(small);
  ASSERT_TRUE(engine.prompt(0, 30).ok());
  EXPECT_FALSE(engine.prompt(0, 5).ok());
  EXPECT_EQ(engine.cache().last_position(0), 29);
  EXPECT_TRUE(engine.prompt(0, 2).ok());
}

TEST_P(OnBothKinds, FiguresCountSteps) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 130).ok());
  EXPECT_EQ(engine.cache().figures().n_steps, 3u);
  EXPECT_EQ(engine.cache().figures().n_refused, 0u);
}

// ---------------------------------------------------------------- sequences

TEST_P(OnBothKinds, RemovedTokensAreForgottenByTheNextStep) {
  SmallEngine engine(wish("full"));
  ASSERT_TRUE(engine.prompt(0, 50).ok());
  ASSERT_TRUE(engine.cache().remove(0, 20, -1).ok());
  EXPECT_EQ(engine.cache().last_position(0), 19);
  ASSERT_TRUE(engine.cache().forget_removed().ok());
  EXPECT_EQ(engine.cache().memory_usage().n_elements, 20u * 2 * 64);
}

TEST_P(OnBothKinds, ASequenceThatIsCutBackContinuesAsIfItHadEndedThere) {
  SmallEngine cut(wish("full")), plain(wish("full"));
  ASSERT_TRUE(cut.prompt(0, 60).ok());
  ASSERT_TRUE(cut.cache().remove(0, 40, -1).ok());
  ASSERT_TRUE(plain.prompt(0, 40).ok());
  EXPECT_LT(largest_difference(cut.peek(0), plain.peek(0)), 1e-5);
}

TEST_P(OnBothKinds, ACopyHoldsWhatTheOriginalDoes) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  ASSERT_TRUE(engine.cache().copy(0, 2).ok());
  EXPECT_EQ(engine.cache().last_position(2), 300);
  EXPECT_LT(largest_difference(engine.peek(0), engine.peek(2)), 1e-5);
  // They part, and the original is gone.
  ASSERT_TRUE(engine.generate(2).ok());
  ASSERT_TRUE(engine.cache().remove(0).ok());
  ASSERT_TRUE(engine.generate(2).ok());
  EXPECT_EQ(engine.cache().last_position(2), 302);
}

TEST(ContextTest, ASharedPrefixIsStoredOnce) {
  Wish wish;
  wish.unified = true;
  SmallEngine engine(wish);
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  const uint64_t elements = engine.cache().memory_usage().n_elements;
  ASSERT_TRUE(engine.cache().copy(0, 1).ok());
  ASSERT_TRUE(engine.cache().copy(0, 2).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_elements, elements);
}

TEST_P(OnBothKinds, KeepForgetsTheOthers) {
  SmallEngine engine(wish());
  for (SequenceId s = 0; s < 3; ++s) ASSERT_TRUE(engine.prompt(s, 20).ok());
  ASSERT_TRUE(engine.cache().keep(1).ok());
  ASSERT_TRUE(engine.cache().forget_removed().ok());
  EXPECT_EQ(engine.cache().memory_usage().n_elements, 20u * 2 * 64);
  EXPECT_EQ(engine.cache().last_position(0), -1);
}

TEST_P(OnBothKinds, ClearForgetsAll) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  engine.cache().clear();
  EXPECT_EQ(engine.bytes(), 0u);
  EXPECT_EQ(engine.cache().account().used(), 0u);
  EXPECT_TRUE(engine.prompt(0, 10).ok());
}

// Keys of a text at positions that were shifted are those of the text at the positions that they have then: attention
// depends on differences of positions only where RoPE makes it so, and the keys here are those of RoPE's own pairs.
TEST_P(OnBothKinds, AShiftRotatesKeys) {
  SmallEngine engine(wish("full"));
  ASSERT_TRUE(engine.prompt(0, 30).ok());
  std::vector<uint16_t> before(2048 * 32), after(2048 * 32), v(2048 * 32);
  engine.cache().read_f16(0, 0, before.data(), 32, v.data(), 32);
  ASSERT_TRUE(engine.cache().remove(0, 0, 10).ok());
  ASSERT_TRUE(engine.cache().shift(0, 10, -1, -10).ok());
  EXPECT_EQ(engine.cache().last_position(0), 19);
  ASSERT_TRUE(engine.cache().shift(0, 0, -1, 10).ok());
  EXPECT_EQ(engine.cache().last_position(0), 29);
  ASSERT_TRUE(engine.cache().forget_removed().ok());
  EXPECT_EQ(engine.cache().read_f16(0, 0, after.data(), 32, v.data(), 32), 20u);
  int n_moved = 0;
  for (size_t i = 10 * 32; i < 30 * 32; ++i)
    n_moved += std::abs(codec::f16_to_f32(before[i]) - codec::f16_to_f32(after[i])) > 0.004f;
  EXPECT_EQ(n_moved, 0) << "back to where they were, but for rounding to halves";
}

TEST(ContextTest, AShiftNeedsRope) {
  ContextOptions options;
  auto context = Context::create(options).value();
  ASSERT_TRUE(context->add_layer(0, kSmallShape).ok());
  EXPECT_EQ(context->shift(0, 0, -1, 1).code(), ErrorCode::unsupported);
}

TEST_P(OnBothKinds, SequencesOutOfRangeAreRefused) {
  SmallEngine engine(wish());
  for (const SequenceId s : {-2, 4, 1000}) {
    EXPECT_FALSE(engine.cache().remove(s).ok());
    EXPECT_FALSE(engine.cache().copy(0, s).ok());
    EXPECT_FALSE(engine.cache().copy(s, 0).ok());
    EXPECT_FALSE(engine.cache().keep(s).ok());
    EXPECT_FALSE(engine.cache().shift(s, 0, -1, 1).ok());
    EXPECT_FALSE(engine.cache().save(s).ok());
    EXPECT_FALSE(engine.cache().load(s, {}).ok());
  }
}

TEST(ContextTest, LayersWithAWindowForgetWhatIsBeforeIt) {
  Wish wish;
  wish.spec = "full";
  wish.window = 100;
  SmallEngine engine(wish);
  ASSERT_TRUE(engine.prompt(0, 900).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  const uint64_t elements = engine.cache().memory_usage().n_elements;
  EXPECT_LT(elements, (901u + 500u) * 64) << "the second layer holds its window and a few more";
  EXPECT_GE(elements, (901u + 100u) * 64);
}

// What was forgotten beyond the window of a draft's last token is what the token before the draft sees.
TEST(ContextTest, ADraftInALayerWithAWindowMayBeTakenBack) {
  Wish wish;
  wish.spec = "full";
  wish.window = 100;
  SmallEngine engine(wish), plain(wish);
  ASSERT_TRUE(engine.prompt(0, 512).ok());  // tokens are forgotten each 256
  ASSERT_TRUE(engine.cache().remove(0, 450, -1).ok());
  ASSERT_TRUE(plain.prompt(0, 450).ok());
  EXPECT_LT(largest_difference(engine.peek(0), plain.peek(0)), 1e-5);
}

// ---------------------------------------------------------------- budgets

TEST_P(OnBothKinds, TheAccountCountsWhatMemoryUsageSays) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  EXPECT_EQ(engine.cache().account().used(), engine.bytes());
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(engine.cache().account().used(), engine.bytes());
  ASSERT_TRUE(engine.prompt(1, 40).ok());
  EXPECT_EQ(engine.cache().account().used(), engine.bytes());
  EXPECT_GE(engine.cache().account().peak(), engine.bytes());
}

TEST_P(OnBothKinds, ABudgetIsNeverExceededAndEndsInARefusal) {
  Wish tight = wish();
  tight.budget = 400 << 10;
  tight.n_cells = 10000;
  SmallEngine engine(tight);
  Status status;
  uint32_t n = 0;
  for (SequenceId s = 0; status && n < 12000; s = (s + 1) % 4) {
    status = engine.prompt(s, 200);
    if (status) status = engine.generate(s);
    n += 201;
    EXPECT_LE(engine.bytes(), tight.budget);
  }
  EXPECT_EQ(status.code(), ErrorCode::over_budget) << status.message();
  EXPECT_LE(engine.cache().account().peak(), tight.budget);
  EXPECT_EQ(engine.cache().figures().n_refused, 1u);
  EXPECT_GT(engine.cache().figures().n_lowered, 0u);
  EXPECT_EQ(engine.cache().lowered_sequences(), (std::vector<SequenceId>{0, 1, 2, 3}));
  EXPECT_EQ(engine.cache().spec(), Spec::parse("mikv").value()) << "what was asked for stays";
  ASSERT_FALSE(engine.log().empty());
  EXPECT_NE(engine.log().back().find("no room for"), std::string::npos) << engine.log().back();
  // The end of sequences makes room for others, which are held as asked for.
  for (SequenceId s = 0; s < 3; ++s) ASSERT_TRUE(engine.cache().remove(s).ok());
  EXPECT_TRUE(engine.prompt(0, 300).ok());
  EXPECT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(engine.cache().lowered_sequences(), std::vector<SequenceId>{3});
}

TEST_P(OnBothKinds, ABudgetTakesBitsNotTheResidual) {
  Wish tight = wish("kivi4:group=head");
  tight.budget = 400 << 10;
  tight.n_cells = 10000;
  SmallEngine engine(tight);
  Status status;
  for (SequenceId s = 0; status; s = (s + 1) % 4) {
    status = engine.prompt(s, 200);
    if (status) status = engine.generate(s);
    EXPECT_LE(engine.bytes(), tight.budget);
  }
  EXPECT_EQ(status.code(), ErrorCode::over_budget) << status.message();
  EXPECT_EQ(engine.cache().lowered_sequences(), (std::vector<SequenceId>{0, 1, 2, 3}));
  // Said once in 10 seconds, whatever the format.
  const std::string held = "128 recent tokens in high precision, the others in int";
  EXPECT_TRUE(std::ranges::any_of(engine.log(), [&](const auto& line) { return line.find(held) != line.npos; }));
}

TEST_P(OnBothKinds, APromptStaysInItsSegmentWhereAnotherPieceHasNoRoomToWait) {
  Wish wide = wish();
  wide.n_cells = 8192;
  wide.n_layers = 8;
  wide.n_ubatch = 256;
  SmallEngine alone(wide);
  ASSERT_TRUE(alone.prompt(0, 4096).ok());
  ASSERT_TRUE(alone.generate(0).ok());
  Wish tight = wide;
  for (const uint32_t percent : {130, 140, 150}) {
    tight.budget = alone.bytes() * percent / 100;
    SmallEngine engine(tight);
    ASSERT_TRUE(engine.prompt(0, 4096).ok()) << percent;
    ASSERT_TRUE(engine.generate(0).ok()) << percent;
    EXPECT_EQ(impl_of(engine.cache()).sequences.seen_by(0).size(), 1u) << percent;
    EXPECT_TRUE(engine.cache().lowered_sequences().empty()) << percent;
    for (const std::string& line : engine.log()) EXPECT_EQ(line.find("small pieces"), line.npos) << line;
  }
}

TEST_P(OnBothKinds, ABudgetSaysOncePerStepWhatItGivesUp) {
  Wish tight = wish();
  tight.budget = 70 << 10;
  SmallEngine engine(tight);
  uint64_t n_before = 0;
  Status status;
  for (SequenceId s = 0; status; s = (s + 1) % 4) {
    status = engine.prompt(s, 40);
    EXPECT_LE(engine.log().size() - n_before, 6u);
    n_before = engine.log().size();
  }
}

TEST_P(OnBothKinds, ABudgetNeedsNothingWhereThereIsRoom) {
  Wish wide = wish();
  wide.budget = 64 << 20;
  SmallEngine engine(wide);
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  EXPECT_TRUE(engine.log().empty());
  EXPECT_EQ(engine.cache().figures().n_lowered, 0u);
}

// ---------------------------------------------------------------- errors between steps

TEST(ContextTest, ACopyThatFailsIsNotAttendedTo) {
  Wish tight;
  tight.budget = 120 << 10;
  SmallEngine engine(tight);
  const Status read = engine.prompt(0, 900);
  ASSERT_TRUE(read.ok()) << read.message() << " at " << engine.cache().last_position(0);
  ASSERT_TRUE(engine.generate(0).ok());
  Status copied;
  SequenceId to = 1;
  while (copied && to < 4) copied = engine.cache().copy(0, to++);
  ASSERT_EQ(copied.code(), ErrorCode::over_budget) << "the budget holds more copies than the test has";
  const SequenceId broken = to - 1;
  const Status step = engine.generate(broken);
  EXPECT_EQ(step.code(), ErrorCode::over_budget);
  EXPECT_NE(step.message().find("incomplete"), std::string::npos) << step.message();
  for (SequenceId s = 1; s < broken; ++s) ASSERT_TRUE(engine.cache().remove(s).ok());  // room for a token more
  EXPECT_TRUE(engine.generate(0).ok()) << "the others are whole";
  EXPECT_FALSE(engine.generate(broken).ok()) << "as long as nobody removes it";
  ASSERT_TRUE(engine.cache().remove(broken).ok());
  EXPECT_TRUE(engine.prompt(broken, 3).ok());
}

TEST(ContextTest, CopiesAreWholeWhereABudgetMustLowerThem) {
  Wish tight;
  tight.budget = 220 << 10;
  SmallEngine engine(tight);
  const Status read = engine.prompt(0, 900);
  ASSERT_TRUE(read.ok()) << read.message() << " at " << engine.cache().last_position(0);
  for (SequenceId to = 1; to < 4; ++to) {
    const Status copied = engine.cache().copy(0, to);
    ASSERT_TRUE(copied.ok()) << copied.message();
  }
  EXPECT_LE(engine.bytes(), tight.budget);
  const std::vector<float> wanted = engine.peek(0);
  for (SequenceId to = 1; to < 4; ++to) {
    const std::vector<float> got = engine.peek(to);
    ASSERT_EQ(got.size(), wanted.size());
    double error = 0.0, square = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
      square += wanted[i] * wanted[i];
    }
    EXPECT_LT(error, 0.1 * square) << to;
  }
}

TEST_P(OnBothKinds, AnEngineMarksWhatItCouldNotDo) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 20).ok());
  ASSERT_TRUE(engine.prompt(1, 20).ok());
  engine.cache().invalidate(1, Error{ErrorCode::engine, "the disk is on fire"});
  EXPECT_TRUE(engine.generate(0).ok());
  const Status status = engine.generate(1);
  EXPECT_EQ(status.code(), ErrorCode::engine);
  EXPECT_NE(status.message().find("the disk is on fire"), std::string::npos);
  ASSERT_TRUE(engine.cache().copy(1, 2).ok());
  EXPECT_EQ(engine.generate(2).code(), ErrorCode::engine) << "a copy of a part is a part";
  const auto state = engine.cache().save(0).value();
  ASSERT_TRUE(engine.cache().load(1, state).ok()) << "what is loaded over it is whole";
  EXPECT_TRUE(engine.generate(1).ok());
  engine.cache().invalidate(kAllSequences, Error{ErrorCode::engine, "again"});
  EXPECT_FALSE(engine.generate(0).ok());
  engine.cache().clear();
  EXPECT_TRUE(engine.prompt(0, 5).ok());
}

TEST(ContextTest, TwoContextsHaveTwoBudgets) {
  Wish small, large;
  small.budget = 12 << 10;
  large.budget = 64 << 20;
  SmallEngine a(small), b(large);
  EXPECT_TRUE(b.prompt(0, 400).ok());
  EXPECT_EQ(a.prompt(0, 400).code(), ErrorCode::over_budget);
  EXPECT_TRUE(b.prompt(1, 400).ok());
  EXPECT_EQ(b.cache().figures().n_refused, 0u);
}

TEST(ContextTest, ContextsThatShareAnAccountShareItsLimit) {
  Wish shared;
  shared.account = std::make_shared<MemoryAccount>();
  SmallEngine a(shared), b(shared);
  ASSERT_TRUE(a.prompt(0, 200).ok());
  ASSERT_TRUE(b.prompt(0, 200).ok());
  EXPECT_EQ(a.cache().account().used() + b.cache().account().used(), a.bytes() + b.bytes());
  EXPECT_EQ(shared.account->used(), a.bytes() + b.bytes());
  EXPECT_GE(shared.account->peak(), a.bytes() + b.bytes());  // of the sum, not the sum of two peaks
  EXPECT_LE(shared.account->peak(), a.cache().account().peak() + b.cache().account().peak());
  EXPECT_EQ(a.cache().memory_usage().n_tokens, 200u);
  b.cache().set_budget(a.bytes() + b.bytes() + 100);
  EXPECT_EQ(shared.account->room(), 100u);
  EXPECT_EQ(a.prompt(1, 300).code(), ErrorCode::over_budget);
}

TEST_P(OnBothKinds, AnUncompressedContextIsRefusedWithoutConcessions) {
  Wish tight = wish("full");
  tight.budget = 64 << 10;
  SmallEngine engine(tight);
  EXPECT_EQ(engine.prompt(0, 1000).code(), ErrorCode::over_budget);
  EXPECT_EQ(engine.cache().figures().n_lowered, 0u);
  EXPECT_EQ(engine.cache().spec(), Spec::parse("full").value());
}

// ---------------------------------------------------------------- snapshots

TEST_P(OnBothKinds, ASnapshotStartsSeveralSpecs) {
  SmallEngine engine(wish()), plain(wish("rtn4"));
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(plain.prompt(0, 300).ok());
  const auto snapshot = engine.cache().snapshot();
  ASSERT_TRUE(snapshot.ok());
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_FALSE(engine.cache().snapshot().ok()) << "something is compressed";
  ASSERT_TRUE(engine.cache().restore(snapshot.value(), Spec::parse("rtn4").value()).ok());
  EXPECT_EQ(engine.cache().last_position(0), 299);
  EXPECT_EQ(engine.peek(0), plain.peek(0));
}

TEST_P(OnBothKinds, CompressEndsAPrompt) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.cache().compress().ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 0u);
}

}  // namespace
}  // namespace mikv::test::context_test
