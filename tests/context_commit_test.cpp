// Context, with a small engine and no model: what is compressed when.
#include <gtest/gtest.h>

#include "test_context.hpp"

namespace mikv::test::context_commit_test {
namespace {

using CommitTest = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, CommitTest, testing::Bool(), kind_name);

TEST_P(CommitTest, APromptThatWasGivenUpIsCompressedWithTheNextGeneratedToken) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 20).ok());
  ASSERT_TRUE(engine.step({{1, 400, SmallEngine::Outputs::none}}).ok());
  ASSERT_TRUE(engine.step({{0, 30}}).ok());
  EXPECT_GT(engine.cache().memory_usage().n_staged_tokens, 400u) << "it may wait behind another prompt";
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_LT(engine.cache().memory_usage().n_staged_tokens, 400u);
  ASSERT_TRUE(engine.step({{1, 30}}).ok()) << "and may be continued";
}

TEST_P(CommitTest, DraftsOfAnyLengthLeaveNothingBeforeThemInF16) {
  for (const uint32_t length : {2u, 48u, 64u, 65u, 200u}) {
    SmallEngine engine(wish());
    ASSERT_TRUE(engine.prompt(0, 600).ok());
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(engine.step({{0, length, SmallEngine::Outputs::all}}).ok());
    // Only the latest draft waits: 2 layers of 2 KV heads.
    EXPECT_LE(engine.cache().memory_usage().n_staged_tokens, 4u * length) << length;
  }
}

TEST_P(CommitTest, APromptWaitsInTheFormatOfTheSpec) {
  const auto staged = [this](const char* spec, uint32_t n) {
    SmallEngine engine(wish(spec));
    EXPECT_TRUE(engine.prompt(0, n).ok());
    EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 4u * n) << "of 2 layers of 2 KV heads";
    return double(engine.cache().memory_usage().staged);
  };
  for (const char* spec : {"mikv:staged=int8", "mikv:prefill=streaming"}) {
    EXPECT_EQ(staged(spec, 200), staged("mikv", 200)) << "short prompts stay exact: " << spec;
    EXPECT_LT(staged(spec, 800), 0.8 * staged("mikv", 800)) << "with scales, of 16 channels: " << spec;
  }
  EXPECT_EQ(staged("mikv:prefill=streaming,staged=f16", 800), staged("mikv", 800));
}

TEST_P(CommitTest, ATextThatIsMeasuredReadsCompressedTokens) {
  SmallEngine engine(wish());
  for (int i = 0; i < 32; ++i) ASSERT_TRUE(engine.step({{0, 64, SmallEngine::Outputs::all}}).ok());
  const MemoryUsage usage = engine.cache().memory_usage();
  EXPECT_GT(usage.n_lo_tokens, 4 * 1000u);
}

// hi of 300 tokens has no place, and what is evicted is nowhere: what comes after it is compressed all the same.
TEST_P(CommitTest, ATokenIsCompressedAfterTokensThatWereAllEvicted) {
  SmallEngine engine(wish("h2o:keep=0.003"));
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(engine.generate(0).ok());
    EXPECT_LE(engine.cache().memory_usage().n_staged_tokens, 4u) << "of 2 layers of 2 KV heads";
    EXPECT_EQ(engine.cache().memory_usage().n_hi_tokens, 0u);
  }
}

TEST_P(CommitTest, AStepThatGeneratesBeginsWithItsPromptCompressed) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 600).ok());
  EXPECT_GT(engine.cache().memory_usage().n_staged_tokens, 0u);
  ASSERT_TRUE(engine.cache().begin_step({{{0, true, 600}}, {}}).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 0u) << "the engine's threads are still its own";
  ASSERT_TRUE(engine.cache().end_step(false).ok());
}

// ---------------------------------------------------------------- prefill=spread

class SpreadTest : public BothKinds {
 protected:
  SmallEngine::Setup of_layers(int n) const {
    SmallEngine::Setup setup = wish("mikv:prefill=spread");
    setup.n_layers = n;
    return setup;
  }
  static uint64_t n_staged(SmallEngine& engine) { return engine.cache().memory_usage().n_staged_tokens; }
};
INSTANTIATE_TEST_SUITE_P(Context, SpreadTest, testing::Bool(), kind_name);

TEST_P(SpreadTest, EachStepWeighsTheNextHeadsOrCompressesTheNextLayers) {
  SmallEngine engine(of_layers(40));
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(engine.generate(0).ok());  // 80 heads in shares of 2
  EXPECT_EQ(n_staged(engine), 40u * 2 * 340);
  for (uint32_t i = 1; i <= 40; ++i) {
    ASSERT_TRUE(engine.generate(0).ok());
    EXPECT_EQ(n_staged(engine), uint64_t{40 - i} * 2 * (340 + i));
  }
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(n_staged(engine), 0u);
}

TEST_P(SpreadTest, ALongPromptIsCompressedInPartsOfALayer) {
  SmallEngine engine(of_layers(4)), at_once(wish("mikv"));
  ASSERT_TRUE(engine.prompt(0, 1200).ok());
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(engine.generate(0).ok());  // 8 heads are weighed
  uint64_t before = n_staged(engine);
  EXPECT_EQ(before, 4u * 2 * 1208);
  for (int i = 0; i < 16; ++i) {
    ASSERT_TRUE(engine.generate(0).ok());
    const uint64_t now = n_staged(engine);
    EXPECT_GE(before + 2 * 4, now + 2 * 256) << i;
    EXPECT_LT(before + 2, now + 2 * 512) << i;
    before = now;
  }
  EXPECT_EQ(n_staged(engine), 0u);
  ASSERT_TRUE(at_once.prompt(0, 1200).ok());
  for (int i = 0; i < 24; ++i) ASSERT_TRUE(at_once.generate(0).ok());
  const MemoryUsage spread = engine.cache().memory_usage(), exact = at_once.cache().memory_usage();
  EXPECT_EQ(spread.n_hi_tokens, 2 * exact.n_hi_tokens) << "4 layers, and 2";
  EXPECT_EQ(spread.n_lo_tokens, 2 * exact.n_lo_tokens);
}

// Parts that are no whole blocks: keys of the last one are encoded again with those that come next.
TEST_P(SpreadTest, KeysByChannelInParts) {
  for (const char* prefill : {"exact", "streaming", "spread"}) {
    SCOPED_TRACE(prefill);
    SmallEngine engine(wish(("kivi4:group=head,prefill=" + std::string(prefill)).c_str()));
    ASSERT_TRUE(engine.prompt(0, 1200).ok());
    for (uint32_t n = 1201; n < 1260; ++n) {
      ASSERT_TRUE(engine.generate(0).ok());
      const MemoryUsage usage = engine.cache().memory_usage();
      EXPECT_EQ(usage.n_hi_tokens + usage.n_lo_tokens + usage.n_staged_tokens, 4 * n) << "2 layers of 2 KV heads";
      if (usage.n_staged_tokens == 0) {
        EXPECT_EQ(usage.n_hi_tokens, 4 * (128 + (n - 128) % 16)) << n;
      }
    }
    EXPECT_EQ(n_staged(engine), 0u);
  }
}

TEST_P(SpreadTest, WithALimitOfMemoryAllAtOnce) {
  SmallEngine::Setup setup = of_layers(4);
  setup.budget = 1u << 30;
  SmallEngine engine(setup);
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(n_staged(engine), 0u);
}

TEST_P(SpreadTest, ThreadsMakeNoDifference) {
  SmallEngine::Setup setup = of_layers(20);  // a head to weigh per step, in two parts
  SmallEngine one(setup);
  setup.n_threads = 2;
  SmallEngine two(setup);
  for (SmallEngine* engine : {&one, &two}) ASSERT_TRUE(engine->prompt(0, 300).ok());
  for (int i = 0; i < 61; ++i) {
    for (SmallEngine* engine : {&one, &two}) ASSERT_TRUE(engine->generate(0).ok());
    ASSERT_EQ(one.output(), two.output()) << i;
  }
  EXPECT_EQ(n_staged(one), 0u);
}

TEST_P(SpreadTest, SavedInBetweenItResumesToTheBit) {
  // 8 heads are weighed, then 4 layers compressed, those of the longer prompt in two parts each.
  for (const auto& [n_prompt, n_before] : {std::pair(300u, 0u),
                                           {300u, 1u},
                                           {300u, 7u},
                                           {300u, 8u},
                                           {300u, 9u},
                                           {300u, 11u},
                                           {600u, 9u},
                                           {600u, 10u},
                                           {600u, 11u}}) {
    SCOPED_TRACE(testing::Message() << n_prompt << ", " << n_before);
    SmallEngine from(of_layers(4)), to(of_layers(4));
    ASSERT_TRUE(from.prompt(1, n_prompt).ok());
    for (uint32_t i = 0; i < n_before; ++i) ASSERT_TRUE(from.generate(1).ok());
    const auto bytes = from.cache().save(1);
    ASSERT_TRUE(bytes) << bytes.message();
    ASSERT_TRUE(to.cache().load(1, bytes.value()).ok());
    for (int i = 0; i < 17; ++i) {
      ASSERT_TRUE(from.generate(1).ok());
      ASSERT_TRUE(to.generate(1).ok());
      ASSERT_EQ(from.output(), to.output()) << i;
      ASSERT_EQ(n_staged(from), n_staged(to)) << i;
    }
    EXPECT_EQ(n_staged(to), 0u);
    EXPECT_EQ(from.cache().save(1).value(), to.cache().save(1).value());
  }
}

TEST_P(SpreadTest, APromptInBetweenWaitsAsWell) {
  SmallEngine engine(of_layers(4));
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(n_staged(engine), 2u * 2 * 310) << "two of four layers wait";
  ASSERT_TRUE(engine.prompt(0, 280).ok());
  EXPECT_EQ(n_staged(engine), 4u * 2 * 280 + 2u * 2 * 310);
  ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(n_staged(engine), 3u * 2 * 281 + 2u * 2 * 310) << "a share, not all";
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_EQ(n_staged(engine), 0u);
}

TEST_P(SpreadTest, WhatIsIdleIsCompressedWhileOthersGenerate) {
  SmallEngine engine(of_layers(4));
  ASSERT_TRUE(engine.prompt(1, 300).ok());
  ASSERT_TRUE(engine.generate(1).ok());
  ASSERT_TRUE(engine.prompt(0, 20).ok());
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(engine.generate(0).ok());
  uint64_t before = n_staged(engine);
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(engine.generate(0).ok());
    EXPECT_EQ(before - n_staged(engine), 2u * 301 - 4u * 2) << "a layer at a time";
    before = n_staged(engine);
  }
  EXPECT_LT(n_staged(engine), 256u) << "sequence 0 is too short to be compressed";
}

TEST_P(SpreadTest, DraftsAndMeasuredTextsAreAsWithoutIt) {
  SmallEngine::Setup setup = of_layers(4);
  setup.n_cells = 4096;
  SmallEngine drafts(setup), measured(of_layers(4));
  ASSERT_TRUE(drafts.prompt(0, 600).ok());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(drafts.step({{0, 48, SmallEngine::Outputs::all}}).ok());
  EXPECT_LE(n_staged(drafts), 4u * 2 * 48);
  for (int i = 0; i < 32; ++i) ASSERT_TRUE(measured.step({{0, 64, SmallEngine::Outputs::all}}).ok());
  EXPECT_GT(measured.cache().memory_usage().n_lo_tokens, 4u * 2 * 500);
}

}  // namespace
}  // namespace mikv::test::context_commit_test
