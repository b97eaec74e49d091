// Memory that runs out at any allocation of any call of mikv.h: an error of that call, no exception, no end of the
// process, and a context that does the rest of its work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "allocation_fault.hpp"
#include "mikv/mikv.h"
#include "test_cache.hpp"

namespace mikv::test::context_fault_test {
namespace {

constexpr uint32_t kLayers = 2, kHeads = 4, kKvHeads = 2, kDim = 16, kPrompt = 300;

// One life of a context. Without a fault it is what others are compared with.
class Life {
 public:
  Life(const char* spec, bool unified, uint64_t budget) : spec_(spec), unified_(unified), budget_(budget) {
    for (float* rows : {q_, k_, v_}) {
      for (uint32_t i = 0; i < kPrompt * kHeads * kDim; ++i) {
        rows[i] = std::sin(0.37f * float(i) * (rows == q_ ? 1.3f : rows == k_ ? 1.1f : 0.7f));
      }
    }
  }
  Life(const Life&) = delete;
  ~Life() {
    mikv_context_free(context_);
    mikv_free(saved_);
  }

  void run() {
    create();
    step({0}, kPrompt);
    step({0}, 1);
    step({0}, 1);
    copy();
    step({0, 1}, 1);
    call([&] { return mikv_context_remove(context_, 0, 50, 60); });
    shift();
    step({0}, 1);
    save_and_load();
    call([&] { return mikv_context_compress(context_); });
    read_figures();
    call([&] { return mikv_context_keep(context_, 1); });
    step({1}, 1);
    last_ = mikv_context_last_position(context_, 1);
    mikv_context_clear(context_);
  }

  const std::vector<float>& outputs() const { return outputs_; }  ///< of all steps
  int32_t last_position() const { return last_; }
  bool lost_text() const { return lost_; }

 private:
  // Makes a call while allocations are counted. One that failed is made again, after `mend`, with memory.
  void call(const std::function<mikv_error()>& make, const std::function<void()>& mend = [] {}) {
    allocation.counting = !allocation.failed;
    mikv_error error = make();
    allocation.counting = false;
    if (error == MIKV_OK) return;
    EXPECT_TRUE(allocation.failed) << mikv_last_error_message();
    EXPECT_EQ(error, MIKV_OUT_OF_MEMORY) << mikv_last_error_message();
    EXPECT_NE(std::string(mikv_last_error_message()).find("memory"), std::string::npos) << mikv_last_error_message();
    mend();
    error = make();
    EXPECT_EQ(error, MIKV_OK) << mikv_last_error_message();
  }

  void create();
  // A step with n more tokens of each sequence; one that fails is done again as a whole.
  void step(const std::vector<int32_t>& sequences, uint32_t n);
  mikv_error try_step(const std::vector<int32_t>& sequences, const std::vector<mikv_token>& tokens, uint32_t n,
                      std::vector<float>& out);
  void copy();
  // Keys that were turned in part are of no use: the sequence is refused until it is removed.
  void shift();
  void save_and_load();
  void read_figures();

  const char* spec_;
  bool unified_;
  uint64_t budget_;
  mikv_context* context_ = nullptr;
  uint8_t* saved_ = nullptr;
  size_t n_saved_ = 0;
  std::vector<float> outputs_;
  int32_t last_ = -1;
  bool lost_ = false;
  float q_[kPrompt * kHeads * kDim], k_[kPrompt * kHeads * kDim], v_[kPrompt * kHeads * kDim];
};

void Life::create() {
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.spec = spec_;
  options.n_sequences = 2;
  options.n_cells = 2048;
  options.n_threads = 3;  // than there are KV heads: they share one
  options.unified = unified_;
  call([&] { return mikv_context_create(&options, &context_); });
  const mikv_layer_shape shape = {kHeads, kKvHeads, kDim, kDim};
  const float angles[kDim / 2] = {1.0f, 0.5f, 0.25f, 0.1f, 0.05f, 0.02f, 0.01f, 0.005f};
  for (int32_t layer = 0; layer < int32_t(kLayers); ++layer) {
    call([&] { return mikv_context_add_layer(context_, layer, &shape, 0); });
    call([&] { return mikv_context_set_rope(context_, layer, angles, kDim / 2, 0); });
  }
  mikv_context_set_budget(context_, budget_);
}

void Life::step(const std::vector<int32_t>& sequences, uint32_t n) {
  std::vector<mikv_token> tokens;
  for (const int32_t sequence : sequences) {
    const int32_t first = mikv_context_last_position(context_, sequence) + 1;
    for (uint32_t i = 0; i < n; ++i) tokens.push_back({sequence, first + int32_t(i), i + 1 == n});
  }
  std::vector<float> out(tokens.size() * kHeads * kDim);
  call([&] { return try_step(sequences, tokens, n, out); });
  for (const float value : out) ASSERT_TRUE(std::isfinite(value));
  outputs_.insert(outputs_.end(), out.begin(), out.end());
}

mikv_error Life::try_step(const std::vector<int32_t>& sequences, const std::vector<mikv_token>& tokens, uint32_t n,
                          std::vector<float>& out) {
  if (const mikv_error begun = mikv_context_begin_step(context_, tokens.data(), tokens.size(), nullptr, 0)) {
    return begun;
  }
  mikv_attend_args calls[2];
  for (size_t i = 0; i < 2; ++i) {
    mikv_attend_args_init(&calls[i]);
    calls[i].q = q_ + (i * n * kHeads * kDim);
    calls[i].out = out.data() + (unified_ ? 0 : std::min(i, sequences.size() - 1) * n * kHeads * kDim);
    calls[i].q_token_stride = calls[i].out_token_stride = size_t{kHeads} * kDim;
    calls[i].q_head_stride = calls[i].out_head_stride = kDim;
    calls[i].n_tokens = uint32_t(unified_ ? tokens.size() : n);
    calls[i].sequence = uint32_t(sequences[std::min(i, sequences.size() - 1)]);
    calls[i].scale = 0.25f;
  }
  const size_t n_calls = unified_ ? 1 : sequences.size();
  for (int32_t layer = 0; layer < int32_t(kLayers); ++layer) {
    if (mikv_context_store(context_, layer, tokens.size(), k_, size_t{kKvHeads} * kDim, v_, size_t{kKvHeads} * kDim)) {
      break;
    }
    (void)mikv_context_attend_all(context_, layer, calls, n_calls);
  }
  return mikv_context_end_step(context_, 1);  // the step's first error
}

void Life::copy() {
  call([&] { return mikv_context_copy(context_, 0, 1, -1, -1); },
       [&] { EXPECT_EQ(mikv_context_remove(context_, 1, -1, -1), MIKV_OK); });
}

void Life::shift() {
  allocation.counting = !allocation.failed;
  const mikv_error error = mikv_context_shift(context_, 0, 60, -1, -10);
  allocation.counting = false;
  if (error == MIKV_OK) return;
  EXPECT_EQ(error, MIKV_OUT_OF_MEMORY) << mikv_last_error_message();
  lost_ = true;
  EXPECT_EQ(mikv_context_remove(context_, 0, -1, -1), MIKV_OK);
  step({0}, kPrompt);
}

void Life::save_and_load() {
  const int32_t tokens[] = {1, 2, 3};
  call([&] { return mikv_context_save(context_, 0, tokens, 3, &saved_, &n_saved_); });
  call([&] { return mikv_context_load(context_, 1, saved_, n_saved_); });
  size_t n = 0;
  call([&] { return mikv_saved_tokens(saved_, n_saved_, nullptr, 0, &n); });
  EXPECT_EQ(n, 3u);
}

void Life::read_figures() {
  mikv_memory_usage usage;
  mikv_memory_usage_init(&usage);
  call([&] { return mikv_context_memory_usage(context_, &usage); });
  EXPECT_GT(usage.total, 0u);
  size_t n = 0;
  call([&] { return mikv_context_lowered(context_, nullptr, 0, &n); });
  call([&] { return mikv_context_tokens(context_, 0, 0, 1, nullptr, 0, &n); });
  EXPECT_GT(n, 0u);
  allocation.counting = !allocation.failed;
  (void)mikv_context_spec(context_);  // the text of before, or none, where there is no memory for it
  allocation.counting = false;
  EXPECT_STRNE(mikv_context_spec(context_), "");
}

struct Case {
  const char* spec;
  bool unified;
  uint64_t budget;
};

class ContextFaultTest : public testing::TestWithParam<Case> {};

TEST_P(ContextFaultTest, AnyAllocationOfAnyCall) {
  const auto [spec, unified, budget] = GetParam();
  allocation.failed = true;  // nothing is counted
  Life whole(spec, unified, budget);
  whole.run();
  for (const bool lasting : {false, true}) {
    uint32_t n = 1;
    for (bool failed = true; failed; n += 1 + n / 12) {  // further apart where there are many
      SCOPED_TRACE(std::to_string(n) + (lasting ? " and all after it" : ""));
      allocation.failed = false;
      allocation.lasting = lasting;
      allocation.left = n - 1;
      Life life(spec, unified, budget);
      ASSERT_NO_THROW(life.run());
      failed = allocation.failed;
      if (life.lost_text()) continue;
      EXPECT_EQ(life.last_position(), whole.last_position());
      // What is compressed later than without the fault gives another rounding, nothing else.
      if (std::string(spec) == "full") {
        EXPECT_EQ(life.outputs(), whole.outputs());
      }
    }
    EXPECT_GT(n, 200u);
  }
  allocation.lasting = false;
}

INSTANTIATE_TEST_SUITE_P(Contexts, ContextFaultTest,
                         testing::Values(Case{"full", false, 0}, Case{"full", true, 0}, Case{"mikv", false, 0},
                                         Case{"mikv:prefill=spread", true, 0}, Case{"mikv", false, 170000}),
                         [](const auto& parameter) {
                           return name_of_spec(
                                      testing::TestParamInfo<const char*>(parameter.param.spec, parameter.index)) +
                                  (parameter.param.unified ? "_unified" : "") +
                                  (parameter.param.budget ? "_budget" : "");
                         });

}  // namespace
}  // namespace mikv::test::context_fault_test
