// A step that begin_step() lets in has the memory that it needs: random prompts and generated tokens under a budget.
#include <gtest/gtest.h>

#include <random>

#include "test_context.hpp"
#include "test_data.hpp"

namespace mikv::test {
namespace {

class RandomBudget : public BothKinds {};
INSTANTIATE_TEST_SUITE_P(Context, RandomBudget, testing::Bool(), kind_name);

TEST_P(RandomBudget, WhatIsLetInFits) {
  for (uint64_t seed = test::seed(); seed < test::seed() + 6; ++seed) {
    std::mt19937 random(uint32_t(seed * 7919 + 1));
    const auto below = [&](uint32_t n) { return uint32_t(random() % n); };
    SmallEngine::Setup setup = wish(below(4) ? "mikv" : "mikv:keep=0.2");
    setup.n_sequences = 6;
    setup.n_cells = setup.unified ? 12288 : 2048;
    setup.n_ubatch = 256;
    setup.n_at_once = 256;
    setup.budget = 100'000 + below(400'000);
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
}

}  // namespace
}  // namespace mikv::test
