// Context, with a small engine and no model: what is compressed when.
#include <gtest/gtest.h>

#include "test_context.hpp"

namespace mikv::test {
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

TEST_P(CommitTest, ATextThatIsMeasuredReadsCompressedTokens) {
  SmallEngine engine(wish());
  for (int i = 0; i < 32; ++i) ASSERT_TRUE(engine.step({{0, 64, SmallEngine::Outputs::all}}).ok());
  const MemoryUsage usage = engine.cache().memory_usage();
  EXPECT_GT(usage.n_lo_tokens, 4 * 1000u);
}

TEST_P(CommitTest, AStepThatGeneratesBeginsWithItsPromptCompressed) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 600).ok());
  EXPECT_GT(engine.cache().memory_usage().n_staged_tokens, 0u);
  ASSERT_TRUE(engine.cache().begin_step({{{0, true, 600}}, {}}).ok());
  EXPECT_EQ(engine.cache().memory_usage().n_staged_tokens, 0u) << "the engine's threads are still its own";
  ASSERT_TRUE(engine.cache().end_step(false).ok());
}

}  // namespace
}  // namespace mikv::test
