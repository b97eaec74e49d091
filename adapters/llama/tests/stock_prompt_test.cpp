// A prompt that mikv read, handed to a context of llama.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "interpose/registry.hpp"
#include "sequence_fixture.hpp"
#include "state/stock_prompt.hpp"

namespace mikv::llama::test {
namespace {

// A prompt that mikv read, in a context of llama.cpp: what of it does not depend on attention is what llama.cpp itself
// stores.
TEST_F(SequenceOperations, PromptGoesToStockContextsOfAnyType) {
  std::mt19937 random(13);
  const auto prompt = words(random, 300);
  const auto next = words(random, 1);
  const auto read = ours("mikv", false);
  feed(read.get(), 0, prompt);
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    SCOPED_TRACE(ggml_type_name(type));
    llama_context_params of_type = params(false);
    of_type.type_k = of_type.type_v = type;
    const ContextHandle by_itself(llama_init_from_model(model_.get(), of_type)),
        given(llama_init_from_model(model_.get(), of_type));
    feed(by_itself.get(), 0, prompt);
    feed(given.get(), 0, words(random, 20));  // forgotten
    const Status status = copy_prompt(read.get(), given.get(), type);
    ASSERT_TRUE(status.ok()) << status.message();

    const auto state = [](llama_context* context) {
      std::vector<uint8_t> bytes(llama_state_seq_get_size(context, 0));
      EXPECT_EQ(llama_state_seq_get_data(context, bytes.data(), bytes.size(), 0), bytes.size());
      return bytes;
    };
    const auto expected = state(by_itself.get()), got = state(given.get());
    ASSERT_EQ(got.size(), expected.size());
    // Magic, sequence, streams, cells; position, number of sequences and sequence of each; layout of V, layers; type
    // and size of rows.
    const LayerShape& shape = cache_of(read.get())->shape(0);
    const size_t k_row = ggml_row_size(type, shape.n_kv_heads * shape.head_dim_k),
                 v_row = ggml_row_size(type, shape.n_kv_heads * shape.head_dim_v);
    const size_t n_layers = cache_of(read.get())->layers().size();
    const size_t k_begin = 16 + 12 * prompt.size() + 8 + 12,
                 v_begin = k_begin + n_layers * (prompt.size() * k_row + 12);
    EXPECT_TRUE(std::equal(got.begin(), got.begin() + long(k_begin), expected.begin()));
    for (const auto& [begin, row] : {std::pair{k_begin, k_row}, {v_begin, v_row}}) {
      size_t n_same = 0;
      for (size_t i = begin; i < begin + prompt.size() * row; ++i) n_same += got[i] == expected[i];
      // Rounding to f16 comes first here, so that a code on an edge may fall to the other side.
      EXPECT_GT(double(n_same) / double(prompt.size() * row), type == GGML_TYPE_F16 ? 0.999 : 0.96);
    }
    const auto a = feed(by_itself.get(), 0, next), b = feed(given.get(), 0, next);
    EXPECT_LT(divergence(a, b), type == GGML_TYPE_Q4_0 ? 0.5 : 0.05);
  }
}

TEST_F(SequenceOperations, CompressedPromptDoesNotGoToStockContexts) {
  std::mt19937 random(14);
  const auto read = ours("mikv", false), given = stock(false);
  feed(read.get(), 0, words(random, 400));
  ASSERT_TRUE(cache_of(read.get())->compress().ok());
  const Status status = copy_prompt(read.get(), given.get(), GGML_TYPE_F16);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("compressed"), std::string::npos) << status.message();
  EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(given.get()), 0), -1);
}

}  // namespace
}  // namespace mikv::llama::test
