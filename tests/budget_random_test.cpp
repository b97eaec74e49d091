// A step that begin_step() lets in has the memory that it needs: random prompts and generated tokens under a budget.
// And what many contexts give up for each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <string_view>
#include <tuple>

#include "test_context.hpp"
#include "test_data.hpp"

namespace mikv::test::budget_random_test {
namespace {

class RandomBudget : public BothKinds {};
INSTANTIATE_TEST_SUITE_P(Context, RandomBudget, testing::Bool(), kind_name);

TEST_P(RandomBudget, WhatIsLetInFits) {
  constexpr const char* kSpecs[] = {"mikv", "mikv:bits=1",   "mikv-paper",          "h2o", "kivi4:group=head",
                                    "mikv", "mikv:keep=0.2", "fastgen:recovery=0.2"};
  uint32_t n_in = 0, n_out = 0;
  bool compressed = false;
  for (uint64_t seed = test::seed(); seed < test::seed() + 7; ++seed) {
    std::mt19937 random(uint32_t(seed * 7919 + 1));
    const auto below = [&](uint32_t n) { return uint32_t(random() % n); };
    SmallEngine::Setup setup = wish(kSpecs[seed % std::size(kSpecs)]);
    setup.n_layers = 2 + int(below(7));
    setup.n_sequences = 6;
    setup.n_cells = setup.unified ? 12288 : 2048;
    setup.n_ubatch = 256;
    setup.n_at_once = 256;
    setup.punctuation_every = Position(seed % 4);
    setup.budget = (50'000 + below(200'000)) * uint64_t(setup.n_layers);
    const uint32_t n_batch = setup.n_ubatch << below(3);
    SmallEngine engine(setup);
    std::vector<uint32_t> to_read(6, 0);
    for (int i = 0; i < 60; ++i) {
      std::vector<SmallEngine::Part> parts;
      uint32_t room = n_batch;
      for (SequenceId s = 0; s < 6; ++s) {
        const bool idle = engine.cache().last_position(s) < 0 && !to_read[size_t(s)];
        if (idle && below(2)) to_read[size_t(s)] = 200 + below(1200);
        if (!idle && below(30) == 0) {
          ASSERT_TRUE(engine.cache().remove(s).ok());
          to_read[size_t(s)] = 0;
          continue;
        }
        if (to_read[size_t(s)] && room > 16) {
          const uint32_t n = std::min({room, to_read[size_t(s)], 64 + below(n_batch)});
          to_read[size_t(s)] -= n;
          room -= n;
          parts.push_back({s, n, to_read[size_t(s)] ? SmallEngine::Outputs::none : SmallEngine::Outputs::last});
        } else if (engine.cache().last_position(s) >= 0 && engine.cache().last_position(s) < 1900 && room) {
          --room;
          parts.push_back({s, 1, SmallEngine::Outputs::last});
        }
      }
      if (parts.empty()) continue;
      const uint64_t refused = engine.cache().figures().n_refused;
      const Status status = engine.step(parts);
      if (!std::string_view(setup.spec).starts_with("fastgen"))
        ++(status ? n_in : n_out);  // whose prompts may keep all
      EXPECT_LE(engine.cache().account().peak(), setup.budget);
      const MemoryUsage usage = engine.cache().memory_usage();
      compressed |= usage.n_hi_tokens + usage.n_lo_tokens > 0;
      if (!status && engine.cache().figures().n_refused == refused) {
        std::string what;
        for (const auto& part : parts) what += " " + std::to_string(part.sequence) + ":" + std::to_string(part.n);
        FAIL() << "seed " << seed << " step " << i << " budget " << setup.budget << ": " << status.message() << what
               << " used " << engine.cache().account().used();
      }
      if (!status) {
        const SequenceId s = parts[below(uint32_t(parts.size()))].sequence;
        for (const auto& part : parts)
          if (part.n > 1) to_read[size_t(part.sequence)] += part.n;
        ASSERT_TRUE(engine.cache().remove(s).ok());
        to_read[size_t(s)] = 0;
      }
    }
  }
  EXPECT_GT(n_in, n_out) << "a prediction that refuses too much is none";
  EXPECT_TRUE(compressed);
}

// A short prompt waits in all layers when the first of them compresses the long one beside it.
TEST_P(RandomBudget, AShortPromptBesideALongOneThatIsCompressed) {
  SmallEngine::Setup setup = wish("mikv:prefill=streaming");
  setup.n_layers = 6;
  setup.n_sequences = 2;
  setup.n_cells = 8192;
  setup.n_ubatch = setup.n_at_once = 256;
  const auto read = [&](uint64_t budget) {
    setup.budget = budget;
    auto engine = std::make_unique<SmallEngine>(setup);
    EXPECT_TRUE(engine->step({{0, 3000, SmallEngine::Outputs::none}}).ok());
    const uint64_t before = engine->cache().account().used();
    const Status status = engine->step({{0, 1000, SmallEngine::Outputs::none}, {1, 800, SmallEngine::Outputs::last}});
    EXPECT_TRUE(status || status.code() == ErrorCode::over_budget) << "budget " << budget << ": " << status.message();
    return std::tuple(status.ok(), before, std::move(engine));
  };
  const auto [begun, before, free] = read(0);
  EXPECT_TRUE(begun);
  const uint64_t most = free->cache().account().peak() - before;
  for (const int percent : {90, 95}) read(before + most * uint64_t(percent) / 100);
  EXPECT_TRUE(std::get<0>(read(before + most * 11 / 10))) << "a tenth more than it takes";
}

// In all twelve layers it would take more than there is.
TEST_P(RandomBudget, LowersAsFewSequencesAsItMust) {
  SmallEngine::Setup roomy = wish("mikv");
  roomy.n_cells = 16384;
  SmallEngine engine(roomy);
  const uint32_t n_tokens[] = {2000, 4000, 1500, 400};
  for (SequenceId s = 0; s < 4; ++s) {
    ASSERT_TRUE(engine.prompt(s, n_tokens[s]).ok());
    ASSERT_TRUE(engine.generate(s).ok());
  }
  // Too little for a token that leaves the hi tier, whose lo tier is copied as it grows: bits are lowered in place.
  const uint64_t limit = engine.bytes() + 256;
  engine.cache().set_budget(limit);
  while (engine.cache().lowered_sequences().empty()) {
    const Status generated = engine.generate(3);
    ASSERT_TRUE(generated.ok()) << generated.message();
    ASSERT_LE(engine.bytes(), limit);
  }
  EXPECT_EQ(engine.cache().lowered_sequences(), std::vector<SequenceId>{1}) << "the longest gives back the most";
  const std::string some = "lower bits: some of what is in use now is held as 5.0 %";
  EXPECT_TRUE(std::ranges::any_of(engine.log(), [&](const auto& line) { return line.find(some) != line.npos; }));
  // Further room is taken from the others, and then from all, before anything is refused.
  size_t n_lowered = 1;
  for (Status status; status; status = engine.generate(3)) {
    EXPECT_GE(engine.cache().lowered_sequences().size(), n_lowered);
    n_lowered = engine.cache().lowered_sequences().size();
    EXPECT_LE(engine.bytes(), limit);
  }
  EXPECT_EQ(n_lowered, 4u);
  EXPECT_GT(engine.cache().figures().n_refused, 0u);
}

TEST(WaitingInBytes, AFirstMicroBatchIsInF16InOneLayerAtATime) {
  const auto read = [](uint64_t budget) {
    SmallEngine::Setup setup;
    setup.n_layers = 12;
    setup.n_ubatch = setup.n_at_once = 512;
    setup.budget = budget;
    auto engine = std::make_unique<SmallEngine>(setup);
    EXPECT_TRUE(engine->step({{0, 512, SmallEngine::Outputs::none}}).ok());
    EXPECT_EQ(engine->cache().memory_usage().n_staged_tokens, 512u * 2 * 12) << "nothing is compressed before its end";
    return engine;
  };
  const uint64_t in_f16 = read(0)->bytes(), budget = in_f16 * 7 / 8;
  EXPECT_LE(read(budget)->cache().account().peak(), budget);
}

}  // namespace
}  // namespace mikv::test::budget_random_test
