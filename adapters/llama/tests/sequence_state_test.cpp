// States and session files of a sequence: it goes on to the bit; what is damaged or another's is refused.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "sequence_fixture.hpp"

namespace mikv::llama::test {
namespace {

TEST_P(Tiers, ASavedSequenceGoesOnToTheBit) {
  std::mt19937 random(7);
  const auto context = ours("mikv", GetParam()), other = ours("mikv", GetParam());
  feed(context.get(), 1, words(random, 300));
  for (int i = 0; i < 5; ++i) feed(context.get(), 1, words(random, 1));
  const std::string bytes = save(context.get(), 1);
  EXPECT_LT(double(bytes.size()), 1.3 * double(cache_of(context.get())->memory_usage().total()));
  ASSERT_EQ(llama_state_seq_set_data(other.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 1),
            bytes.size());
  for (int i = 0; i < 8; ++i) {
    const auto token = words(random, 1);
    EXPECT_EQ(feed(context.get(), 1, token), feed(other.get(), 1, token)) << i;
  }
}

TEST_P(Tiers, ABadStateIsRefusedAndChangesNothing) {
  std::mt19937 random(8);
  const auto context = ours("mikv", GetParam()), untouched = ours("mikv", GetParam());
  const auto prompt = words(random, 300);
  for (llama_context* c : {context.get(), untouched.get()}) {
    feed(c, 0, prompt);
    feed(c, 0, {prompt[0]});
  }
  const std::string good = save(context.get(), 0);
  const auto refused = [&](const std::string& bytes) {
    return llama_state_seq_set_data(context.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 0) ==
           0;
  };
  for (size_t i = 0; i < good.size(); i += 1 + good.size() / 97) {
    std::string bad = good;
    bad[i] = char(bad[i] ^ 0x40);
    EXPECT_TRUE(refused(bad)) << i;
    EXPECT_TRUE(refused(good.substr(0, i))) << i;
  }
  const auto another = ours("h2o", GetParam());
  feed(another.get(), 0, prompt);
  EXPECT_TRUE(refused(save(another.get(), 0)));
  const auto stock_context = stock(GetParam());
  feed(stock_context.get(), 0, prompt);
  EXPECT_TRUE(refused(save(stock_context.get(), 0)));
  for (int i = 0; i < 3; ++i) {
    const auto token = words(random, 1);
    EXPECT_EQ(feed(context.get(), 0, token), feed(untouched.get(), 0, token)) << i;
  }
}

TEST_P(Tiers, AStateOfKeysThatWereRotatedOtherwiseIsRefused) {
  std::mt19937 random(10);
  const auto context = ours("mikv", GetParam());
  feed(context.get(), 0, words(random, 300));
  const std::string bytes = save(context.get(), 0);
  const auto taken_after = [&](void (*edit)(llama_context_params&)) {
    llama_context_params other = params(GetParam());
    edit(other);
    auto made = init_context(model_.get(), other, Spec::parse("mikv").value(), AttentionBy::mikv);
    EXPECT_TRUE(made.ok()) << made.message();
    const ContextHandle loader(made.value());
    return llama_state_seq_set_data(loader.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 0) > 0;
  };
  EXPECT_TRUE(taken_after([](llama_context_params&) {}));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.rope_freq_base = 20000; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.rope_freq_scale = 0.5f; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.yarn_ext_factor = 1; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.yarn_attn_factor = 2; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.yarn_beta_fast = 16; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.yarn_beta_slow = 2; }));
  EXPECT_FALSE(taken_after([](llama_context_params& of) { of.yarn_orig_ctx = 1024; }));
}

TEST_P(Tiers, SessionFiles) {
  std::mt19937 random(9);
  const std::string path = "/tmp/mikv-session-test-" + std::to_string(getpid());
  const auto context = ours("mikv", GetParam()), other = ours("mikv", GetParam());
  const auto prompt = words(random, 300);
  feed(context.get(), 2, prompt);
  EXPECT_GT(llama_state_seq_save_file(context.get(), path.c_str(), 2, prompt.data(), prompt.size()), 0u);
  std::vector<llama_token> tokens(400);
  size_t n = 0;
  EXPECT_GT(llama_state_seq_load_file(other.get(), path.c_str(), 2, nullptr, 0, &n), 0u);
  EXPECT_EQ(n, prompt.size());
  EXPECT_EQ(llama_state_seq_load_file(other.get(), path.c_str(), 2, tokens.data(), 10, &n), 0u);
  EXPECT_GT(llama_state_seq_load_file(other.get(), path.c_str(), 2, tokens.data(), tokens.size(), &n), 0u);
  tokens.resize(n);
  EXPECT_EQ(tokens, prompt);
  const auto token = words(random, 1);
  EXPECT_EQ(feed(context.get(), 2, token), feed(other.get(), 2, token));

  EXPECT_TRUE(llama_state_save_file(context.get(), path.c_str(), prompt.data(), prompt.size()));
  tokens.resize(400);
  EXPECT_TRUE(llama_state_load_file(other.get(), path.c_str(), tokens.data(), tokens.size(), &n));
  EXPECT_EQ(feed(context.get(), 2, token), feed(other.get(), 2, token));
  EXPECT_FALSE(llama_state_load_file(other.get(), "/nonexistent/session", tokens.data(), tokens.size(), &n));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace mikv::llama::test
