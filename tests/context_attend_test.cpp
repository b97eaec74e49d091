// Calls of Context::attend: what they refuse, and what a call that failed leaves.
#include <gtest/gtest.h>

#include <vector>

#include "mikv/reference.hpp"
#include "test_context.hpp"

namespace mikv::test::context_attend_test {
namespace {

using AttendCalls = BothKinds;
INSTANTIATE_TEST_SUITE_P(Context, AttendCalls, testing::Bool(), kind_name);

// One call of `n` tokens of sequence 0, with queries, keys and values of 0.3 and 0.1.
struct OneCall {
  explicit OneCall(uint32_t n) : q(n * 64, 0.3f), out(n * 64), rows(n * 32, 0.1f) {
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = 64;
    args.q_head_stride = args.out_head_stride = 16;
    args.n_tokens = n;
    args.scale = 0.25f;
  }
  Status begin(Context& cache, Position first) {
    Batch batch;
    for (uint32_t i = 0; i < args.n_tokens; ++i) {
      batch.tokens.push_back({0, i + 1 == args.n_tokens, first + Position(i)});
    }
    if (const Status begun = cache.begin_step(batch); !begun) return begun;
    return cache.store(0, {}, rows.data(), 32, rows.data(), 32, args.n_tokens);
  }
  std::vector<float> q, out, rows;
  AttendArgs args;
};

// A thread that stopped half way leaves its part of the heads that others share. The next step must not count it.
TEST_P(AttendCalls, AThreadThatDidNotAttendLeavesNothingToTheNextStep) {
  for (const uint32_t n : {1u, 40u}) {
    SmallEngine::Setup setup = wish("h2o");
    setup.n_threads = 3;
    setup.n_cells = 8192;
    setup.n_ubatch = 512;
    SmallEngine engine(setup);
    ASSERT_TRUE(engine.prompt(0, 3000).ok());
    Context& cache = engine.cache();
    OneCall failed(n), next(n), alone(n);
    ASSERT_TRUE(failed.begin(cache, 3000).ok());
    ASSERT_TRUE(cache.attend(0, {&failed.args, 1}, 1, 3).ok());
    cache.fail(Error{ErrorCode::engine, "the others stopped"});
    EXPECT_FALSE(cache.attend(0, {&failed.args, 1}, 0, 3).ok()) << "the rest of the step has no effect";
    EXPECT_EQ(cache.end_step().code(), ErrorCode::engine);
    ASSERT_TRUE(next.begin(cache, 3000).ok());
    ASSERT_TRUE(reference_attend(cache, 0, {&alone.args, 1}).ok());
    for (const uint32_t thread : {2u, 0u, 1u}) ASSERT_TRUE(cache.attend(0, {&next.args, 1}, thread, 3).ok());
    EXPECT_LT(largest_difference(next.out, alone.out), 1e-2) << n;
    ASSERT_TRUE(cache.end_step().ok());
  }
}

TEST_P(AttendCalls, MoreTokensThanWereStoredDoNotAttend) {
  SmallEngine engine(wish());
  OneCall two(2), three(3);
  ASSERT_TRUE(two.begin(engine.cache(), 0).ok());
  EXPECT_FALSE(engine.cache().attend(0, {&three.args, 1}).ok());
  EXPECT_FALSE(engine.cache().end_step().ok());
}

TEST(AttendCall, ASequenceAttendsOnce) {
  SmallEngine engine;
  OneCall call(2);
  const AttendArgs twice[] = {call.args, call.args};
  ASSERT_TRUE(call.begin(engine.cache(), 0).ok());
  const Status refused = engine.cache().attend(0, twice);
  EXPECT_NE(refused.message().find("twice"), std::string::npos) << refused.message();
  EXPECT_FALSE(engine.cache().end_step().ok());
}

TEST_P(AttendCalls, TheReferenceAgreesWithinAStep) {
  SmallEngine engine(wish());
  ASSERT_TRUE(engine.prompt(0, 300).ok());
  ASSERT_TRUE(engine.generate(0).ok());
  OneCall call(1), wanted(1);
  ASSERT_TRUE(call.begin(engine.cache(), 301).ok());
  ASSERT_TRUE(reference_attend(engine.cache(), 0, {&wanted.args, 1}).ok());
  ASSERT_TRUE(engine.cache().attend(0, {&call.args, 1}).ok());
  EXPECT_LT(largest_difference(call.out, wanted.out), 1e-2);
  ASSERT_TRUE(engine.cache().end_step().ok());
}

}  // namespace
}  // namespace mikv::test::context_attend_test
