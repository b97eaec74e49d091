// --kv-budget: a ceiling that is true, and what is given up, in which order, to stay under it.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "interpose/registry.hpp"
#include "kv_context.hpp"
#include "llama.h"

namespace mikv::llama::budget_test {
namespace {

using ModelHandle = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using ContextHandle = std::unique_ptr<llama_context, decltype(&llama_free)>;

constexpr uint64_t kBudget = uint64_t{6} << 20;

/// Of the memory of a tensor, those that lie wholly in it.
ptrdiff_t resident_pages(const ggml_tensor& tensor) {
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), begin = uintptr_t(tensor.data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + ggml_nbytes(&tensor)) / page * page;
  std::vector<unsigned char> pages((last - first) / page);
  EXPECT_EQ(mincore(reinterpret_cast<void*>(first), last - first, pages.data()), 0);
  return std::ranges::count_if(pages, [](unsigned char state) { return state & 1; });
}

class Budget : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const char* path = std::getenv("MIKV_TEST_MODEL");
    ASSERT_NE(path, nullptr) << "MIKV_TEST_MODEL must name a GGUF file; `mikv model path smollm2-135m` prints one";
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    model_.reset(llama_model_load_from_file(path, llama_model_default_params()));
    ASSERT_NE(model_, nullptr);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 8192;
    params.n_batch = 2048;
    params.n_ubatch = 256;
    params.n_seq_max = 4;
    params.kv_unified = GetParam();
    params.n_threads = params.n_threads_batch = 2;
    auto context = init_context(model_.get(), params, Spec::parse("mikv").value());
    ASSERT_TRUE(context.ok()) << context.message();
    context_.reset(context.value());
    cache_ = cache_of(context_.get());
    cache_->set_budget(kBudget);
  }
  struct Part {
    llama_seq_id sequence;
    size_t n;
  };
  int32_t feed(llama_seq_id sequence, size_t n) { return feed({{sequence, n}}); }
  int32_t feed(std::initializer_list<Part> parts) {
    size_t n_tokens = 0;
    for (const Part& part : parts) n_tokens += part.n;
    llama_batch batch = llama_batch_init(int32_t(n_tokens), 0, 1);
    for (const auto& [sequence, n] : parts) {
      const llama_pos begin = llama_memory_seq_pos_max(llama_get_memory(context_.get()), sequence) + 1;
      for (size_t i = 0; i < n; ++i) {
        const int32_t at = batch.n_tokens++;
        batch.token[at] = std::uniform_int_distribution<llama_token>(260, 2000)(random_);
        batch.pos[at] = begin + llama_pos(i);
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = sequence;
        batch.logits[at] = i + 1 == n;
      }
    }
    const int32_t code = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    EXPECT_TRUE(code != 0 || std::isfinite(llama_get_logits_ith(context_.get(), -1)[0]));
    EXPECT_LE(cache_of(context_.get())->memory_usage().total(), cache_->account().limit());
    return code;
  }

  ModelHandle model_{nullptr, llama_model_free};
  ContextHandle context_{nullptr, llama_free};
  Context* cache_ = nullptr;
  std::mt19937 random_{5};
};

TEST_P(Budget, IsNeverExceededAndGivesUpQualityBeforeRequests) {
  const Spec asked = cache_->spec();
  int32_t code = 0;
  size_t n_fed = 0;
  for (llama_seq_id s = 0; code == 0; s = (s + 1) % 4) {
    ASSERT_LT(n_fed, 4000u);
    for (const size_t n : {size_t{50}, size_t{1}}) {
      if (code == 0) code = feed(s, n);
      if (code == 0) n_fed += n;
    }
  }
  EXPECT_EQ(code, 1);  // llama_decode's word for a full cache
  // No transient peak either: the allocator counts. Bitmaps of cells are beside it, and small.
  EXPECT_LE(cache_->account().peak(), kBudget);
  EXPECT_EQ(cache_->figures().n_refused, 1u);
  EXPECT_GT(cache_->figures().n_lowered, 1u);
  EXPECT_EQ(cache_->lowered_sequences().size(), 4u);
  EXPECT_EQ(cache_->spec(), asked) << "what comes later is held as it was asked for";
  // All of it was used: less is left than 50 tokens, in whole blocks of 16, take in the 8 bits that they may wait in.
  const MemoryUsage usage = cache_of(context_.get())->memory_usage();
  EXPECT_LT(kBudget - usage.total(), 64 * (usage.n_elements / n_fed));

  // The end of a request makes room for another.
  llama_memory_seq_rm(llama_get_memory(context_.get()), 0, -1, -1);
  EXPECT_EQ(feed(0, 100), 0);
  EXPECT_EQ(feed(0, 1), 0);
}

// Half a megabyte a step in f16: the prompt alone would take twice the budget before it is compressed.
TEST_P(Budget, APromptThatDoesNotFitInF16IsCompressedAsItIsRead) {
  for (int i = 0; i < 5; ++i) ASSERT_EQ(feed(0, 100), 0);
  ASSERT_EQ(feed(0, 200), 0);
  EXPECT_LE(cache_->account().peak(), kBudget);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_EQ(cache_->spec(), Spec::parse("mikv").value());
}

// Room for 1,200 tokens in f16, and for 2,000 in 8 bits: they are compressed together, at the prompt's end.
TEST_P(Budget, APromptThatFitsIn8BitsWaitsForItsEnd) {
  constexpr uint64_t kRoom = uint64_t{28} << 20;
  cache_->set_budget(kRoom);
  ASSERT_EQ(feed(0, 700), 0);
  const MemoryUsage in_f16 = cache_of(context_.get())->memory_usage();
  ASSERT_EQ(feed(0, 1300), 0);
  const MemoryUsage in_bytes = cache_of(context_.get())->memory_usage();
  EXPECT_EQ(in_bytes.n_staged_tokens / in_f16.n_staged_tokens, 2u);
  EXPECT_EQ(in_bytes.staged / in_bytes.n_staged_tokens, in_f16.staged / in_f16.n_staged_tokens / 2);
  ASSERT_EQ(feed(0, 1), 0);
  EXPECT_EQ(cache_of(context_.get())->memory_usage().n_staged_tokens, 0u);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_LE(cache_->account().peak(), kRoom);
}

// Room for 1,800 tokens in 8 bits: a prompt waits until there is none for more of it, and not only for the fewest that
// a segment needs.
TEST_P(Budget, AsMuchOfAPromptAsThereIsRoomForIsCompressedAtOnce) {
  constexpr uint64_t kRoom = uint64_t{23} << 20;
  cache_->set_budget(kRoom);
  ASSERT_EQ(feed(0, 2000), 0);
  EXPECT_EQ(cache_->memory_usage().n_staged_tokens, 0u);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_LE(cache_->account().peak(), kRoom);
  EXPECT_GT(double(cache_->account().peak()), 0.8 * double(kRoom)) << "1,536 tokens, and not 1,024";
}

// Micro-batches do not begin where prompts do: nearly a whole one more than if they did waits.
TEST_P(Budget, PromptsThatShareABatchFit) {
  constexpr uint64_t kRoom = uint64_t{17} << 20;  // 1,024 tokens of a prompt have room, and 41 + 1,024 + 214 do not
  cache_->set_budget(kRoom);
  EXPECT_EQ(feed({{1, 41}, {0, 1300}}), 0);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_LE(cache_->account().peak(), kRoom);
}

// A token of another sequence is cut with a prompt's micro-batches, so that its fourth ends with 1,023 or 1,025 tokens:
// the prompt does not have to wait for a fifth, for which there would be no room, only for pieces of 256.
TEST_P(Budget, ATokenBesideAPromptDoesNotMakeItWaitForAMicroBatchMore) {
  constexpr uint64_t kRoom = uint64_t{14} << 20;
  ASSERT_EQ(feed(1, 41), 0);
  cache_->set_budget(kRoom);
  EXPECT_EQ(feed({{1, 1}, {0, 1300}}), 0);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_LE(cache_->account().peak(), kRoom);
  EXPECT_GT(double(cache_->account().peak()), 0.7 * double(kRoom)) << "1,024 tokens, and not 256";
}

// Keys are rotated where they are.
TEST_P(Budget, AContextShiftTakesNoRoom) {
  cache_->set_budget(uint64_t{32} << 20);
  ASSERT_EQ(feed(0, 1000), 0);
  ASSERT_EQ(feed({{0, 1}, {1, 300}}), 0);
  const uint64_t before = cache_of(context_.get())->memory_usage().total();
  cache_->set_budget(before + (uint64_t{1} << 20));  // llama.cpp's own keys: 90 MiB

  const llama_memory_t memory = llama_get_memory(context_.get());
  ASSERT_TRUE(llama_memory_can_shift(memory));
  llama_memory_seq_rm(memory, 0, 4, 504);
  llama_memory_seq_add(memory, 0, 504, -1, -500);
  EXPECT_EQ(feed(0, 1), 0);
  EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), 501);
  EXPECT_EQ(cache_->figures().n_lowered, 0u);
  EXPECT_LE(cache_of(context_.get())->memory_usage().total(), before);
  for (const auto& [index, layer] : Registry::get().of_context(context_.get())->layers())
    EXPECT_EQ(resident_pages(*layer.k), 0) << index;
}

INSTANTIATE_TEST_SUITE_P(Caches, Budget, testing::Bool(),
                         [](const auto& p) { return std::string(p.param ? "Unified" : "Split"); });

}  // namespace
}  // namespace mikv::llama::budget_test
