// Static balancers: what is measured, their file, and caches that read it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "mikv/atomic_file.hpp"
#include "mikv/estimate.hpp"
#include "mikv/static_balancer.hpp"
#include "test_context.hpp"

namespace mikv::test::static_balancer_test {
namespace {

class StaticBalancer : public testing::Test {
 protected:
  ~StaticBalancer() override { std::remove(path_.c_str()); }

  void write(const std::string& text) const {
    ASSERT_TRUE(write_file(path_, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}).ok());
  }
  /// Writes the file of a prompt of 300 tokens, which the engine reads.
  void calibrate(SmallEngine& engine) const {
    ASSERT_TRUE(engine.prompt(0, 300).ok());
    ChannelMaxima maxima;
    ASSERT_TRUE(add_maxima(engine.cache(), maxima).ok());
    ASSERT_TRUE(write_static_balancers(path_, balancers_of(maxima)).ok());
  }
  std::string spec(const std::string& more = "") const { return "mikv-paper:balancer=" + path_ + more; }

  const std::string path_ = testing::TempDir() + "mikv_balancers_" + std::to_string(getpid());
};

TEST_F(StaticBalancer, AFileReadsBackAsItWasWritten) {
  const StaticBalancers balancers{{0, {{1.0f, 0.1f}, {3.0f, 1e-4f}}}, {7, {{0.33333334f, 2.0f}, {4.0f, 5.0f}}}};
  ASSERT_TRUE(write_static_balancers(path_, balancers).ok());
  const auto read = read_static_balancers(path_);
  ASSERT_TRUE(read.ok()) << read.message();
  EXPECT_EQ(read.value(), balancers);
}

TEST_F(StaticBalancer, ABrokenFileIsNamedByLine) {
  const std::string title = "mikv balancers 1\n";
  const struct {
    std::string text;
    const char* said;
  } broken[] = {{"", ":1: no balancers"},
                {"something else\n", ":1: no file of balancers"},
                {title, ":1: no balancers"},
                {title + "0 0 1 2\n0 2 1 2\n", ":3: "},  // a head is left out
                {title + "0 0 1 2\n0 1 1\n", ":3: "},    // fewer channels
                {title + "0 0\n", ":2: "},               // none
                {title + "0 0 1 -2\n", ":2: "},          // not positive
                {title + "0 0 1 0\n", ":2: "},           //
                {title + "0 0 1 inf\n", ":2: "},         // not finite
                {title + "0 0 1 nan\n", ":2: "},         //
                {title + "0 0 1 1e99\n", ":2: "},        //
                {title + "0 0 1 2x\n", ":2: "},          // not a number
                {title + "-1 0 1 2\n", ":2: "},          // no layer
                {title + "99999999999 0 1\n", ":2: "},   //
                {title + "0 4000000000 1\n", ":2: "},    // no head
                {title + std::string("0 0 1\0 2", 8), ":2: "}};
  for (const auto& [text, said] : broken) {
    write(text);
    const auto read = read_static_balancers(path_);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_EQ(read.error().code, ErrorCode::damaged_data);
    EXPECT_NE(read.message().find(path_ + said), std::string::npos) << read.message();
    EXPECT_NE(read.message().find("mikv calibrate"), std::string::npos) << read.message();
  }
  std::string long_line = title + "0 0";
  for (int i = 0; i < 513; ++i) long_line += " 1";
  write(long_line);
  EXPECT_FALSE(read_static_balancers(path_).ok());
  const auto missing = read_static_balancers(path_ + ".none");
  EXPECT_EQ(missing.error().code, ErrorCode::io);
}

TEST_F(StaticBalancer, FactorsAreThoseOfEquation2) {
  const ChannelMaxima maxima{{3, {{{8.0f, 1.0f, 0.0f}, {2.0f, 4.0f, 5.0f}}}}};
  const StaticBalancers balancers = balancers_of(maxima);
  EXPECT_EQ(balancers, (StaticBalancers{{3, {{2.0f, 0.5f, 1.0f}}}}));
}

TEST_F(StaticBalancer, MaximaAreThoseOfTheText) {
  SmallEngine engine({.spec = "mikv-paper"});
  ChannelMaxima maxima;
  ASSERT_TRUE(engine.prompt(0, 100).ok());
  EXPECT_FALSE(add_maxima(engine.cache(), maxima).ok()) << "no query is recorded yet";
  ASSERT_TRUE(engine.prompt(0, 200).ok());
  maxima.clear();
  ASSERT_TRUE(add_maxima(engine.cache(), maxima).ok());
  ASSERT_EQ(maxima.size(), 2u);
  for (const auto& [layer, heads] : maxima) {
    ASSERT_EQ(heads.size(), kSmallShape.n_kv_heads);
    for (const HeadMaxima& head : heads) {
      for (uint32_t c = 0; c < kSmallShape.head_dim_k; ++c) {
        EXPECT_GT(head.k[c], 0.9f);  // keys are noise of [-1, 1), and every fifth channel has 1.5 more
        EXPECT_LE(head.k[c], 2.5f);
        EXPECT_GT(head.q[c], 0.9f);
      }
    }
  }
  const ChannelMaxima before = maxima;
  ASSERT_TRUE(add_maxima(engine.cache(), maxima).ok());
  EXPECT_EQ(maxima.at(0)[0].k, before.at(0)[0].k) << "the same text adds nothing";
  SmallEngine unrecorded({.spec = "h2o"});
  ASSERT_TRUE(unrecorded.prompt(0, 300).ok());
  EXPECT_FALSE(add_maxima(unrecorded.cache(), maxima).ok());
}

// By the file of its own prompt's maxima a cache stores what the balancer of that prompt stores.
TEST_F(StaticBalancer, TheFileOfAPromptIsThePromptsOwnBalancer) {
  SmallEngine dynamic({.spec = "mikv-paper"});
  ASSERT_NO_FATAL_FAILURE(calibrate(dynamic));
  SmallEngine fixed({.spec = spec()}), none({.spec = "mikv-paper:outlier=none"});
  ASSERT_TRUE(fixed.prompt(0, 300).ok() && none.prompt(0, 300).ok());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(dynamic.generate(0).ok() && fixed.generate(0).ok() && none.generate(0).ok());
    EXPECT_EQ(fixed.output(), dynamic.output()) << "token " << i;
    EXPECT_NE(none.output(), dynamic.output());
  }
  EXPECT_EQ(fixed.bytes(), dynamic.bytes());
}

TEST_F(StaticBalancer, TextsAreCompressedWithoutAPrompt) {
  SmallEngine dynamic({.spec = "mikv-paper"});
  ASSERT_NO_FATAL_FAILURE(calibrate(dynamic));
  SmallEngine engine({.spec = spec(",outlier=center+hadamard")}), stored({.spec = spec(",outlier=center+hadamard")});
  ASSERT_TRUE(engine.prompt(0, 400).ok());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(engine.generate(0).ok());
  EXPECT_GT(engine.cache().memory_usage().n_lo_tokens, 0u);
  const auto bytes = engine.cache().save(0);
  ASSERT_TRUE(bytes.ok());
  const Status loaded = stored.cache().load(0, bytes.value());
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_EQ(stored.peek(0), engine.peek(0));
}

TEST_F(StaticBalancer, AFileOfAnotherModelIsRefused) {
  const auto refused = [&](const StaticBalancers& balancers) {
    EXPECT_TRUE(write_static_balancers(path_, balancers).ok());
    ContextOptions options;
    options.spec = Spec::parse(spec()).value();
    const auto context = Context::create(std::move(options)).value();
    const Status status = context->add_layer(1, kSmallShape);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::mismatch);
    EXPECT_NE(status.message().find("another model"), std::string::npos) << status.message();
  };
  const std::vector<float> ones(kSmallShape.head_dim_k, 1.0f);
  refused({{0, {ones, ones}}});                  // no layer 1
  refused({{1, {ones}}});                        // fewer KV heads
  refused({{1, {{1.0f, 1.0f}, {1.0f, 1.0f}}}});  // fewer channels
}

TEST_F(StaticBalancer, ABudgetIsNeverExceeded) {
  ASSERT_TRUE(write_static_balancers(path_, {{0, {std::vector(16, 0.5f), std::vector(16, 2.0f)}},
                                             {1, {std::vector(16, 1.5f), std::vector(16, 1.0f)}}})
                  .ok());
  SmallEngine free({.spec = spec()});
  ASSERT_TRUE(free.prompt(0, 1000).ok() && free.generate(0).ok());
  uint32_t n_answered = 0;
  for (uint64_t percent = 50; percent <= 150; percent += 10) {
    const uint64_t budget = free.bytes() * percent / 100;
    SmallEngine tight({.spec = spec(), .budget = budget});
    Status status = tight.prompt(0, 1000);
    if (status) status = tight.generate(0);
    EXPECT_TRUE(status.ok() || status.error().code == ErrorCode::over_budget) << percent << ": " << status.message();
    EXPECT_LE(tight.cache().account().peak(), budget);
    n_answered += status.ok();
  }
  EXPECT_GE(n_answered, 3u);
}

TEST_F(StaticBalancer, AnEstimateNeedsNoFile) {
  const LayerLoad layer{kSmallShape, 600};
  const auto with = estimate_cache({&layer, 1}, Spec::parse(spec()).value(), 600),
             without = estimate_cache({&layer, 1}, Spec::parse("mikv-paper").value(), 600);
  ASSERT_TRUE(with.ok()) << with.message();
  EXPECT_EQ(with.value().held, without.value().held);
}

}  // namespace
}  // namespace mikv::test::static_balancer_test
