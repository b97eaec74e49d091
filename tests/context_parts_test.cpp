// Context: a step in parts and by several threads; what is stored where.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "mikv/inspect.hpp"
#include "test_context.hpp"

namespace mikv::test::context_parts_test {
namespace {

using InParts = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, InParts, testing::Bool(), kind_name);

TEST_P(InParts, ThreadsGiveTheSameBits) {
  SmallEngine::Setup two = wish();
  SmallEngine one(two);
  ASSERT_TRUE(one.prompt(0, 280).ok());
  two.n_threads = 2;
  SmallEngine other(two);
  ASSERT_TRUE(other.prompt(0, 280).ok());
  EXPECT_EQ(one.peek(0), other.peek(0));
}

TEST_P(InParts, AStepMayPassThroughALayerInParts) {
  for (const char* spec : {"full", "mikv"}) {
    SmallEngine::Setup wanted = wish(spec);
    wanted.n_ubatch = 300;
    wanted.window = 40;
    SmallEngine whole(wanted);
    wanted.n_at_once = 70;
    SmallEngine parts(wanted);
    ASSERT_TRUE(whole.prompt(0, 300).ok());
    ASSERT_TRUE(parts.prompt(0, 300).ok());
    ASSERT_EQ(whole.output().size(), parts.output().size());
    for (size_t i = 0; i < whole.output().size(); ++i) ASSERT_NEAR(whole.output()[i], parts.output()[i], 1e-5) << spec;
  }
}

TEST(ContextThreads, AChildProcessStartsThreadsOfItsOwn) {
  SmallEngine::Setup two;
  two.n_threads = 2;
  SmallEngine engine(two);
  ASSERT_TRUE(engine.prompt(0, 100).ok());
  const pid_t child = fork();
  if (child == 0) _exit(engine.generate(0).ok() ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(engine.generate(0).ok());
}

TEST_P(InParts, TokensAreListedByPositionWithTheirTiers) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(1, 300).ok());
  const auto before = tokens_of(engine.cache(), 0, 1, 1);
  ASSERT_TRUE(before.ok());
  ASSERT_EQ(before.value().size(), 300u);
  EXPECT_TRUE(std::ranges::all_of(before.value(), [](const TokenState& t) { return t.tier == TokenTier::staged; }));
  ASSERT_TRUE(engine.generate(1).ok());
  const auto tokens = tokens_of(engine.cache(), 0, 1, 1).value();
  ASSERT_EQ(tokens.size(), 301u);
  uint32_t n_hi = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(tokens[i].position, Position(i));
    n_hi += tokens[i].tier == TokenTier::hi;
  }
  EXPECT_EQ(n_hi, 24u) << "floor(0.08 * 301)";
  EXPECT_TRUE(tokens_of(engine.cache(), 0, 1, 0).value().empty());
  for (const auto& refused :
       {tokens_of(engine.cache(), 9, 0, 0), tokens_of(engine.cache(), 0, 2, 0), tokens_of(engine.cache(), 0, 0, 9)})
    EXPECT_FALSE(refused.ok());
}

}  // namespace
}  // namespace mikv::test::context_parts_test
