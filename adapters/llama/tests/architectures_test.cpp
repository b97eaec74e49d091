// Models that keep more, less or other state than a plain KV cache: sliding windows, hybrids, recurrent models,
// encoders.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "interpose/drop_in.hpp"
#include "interpose/registry.hpp"
#include "kv_context.hpp"
#include "llama.h"
#include "tiny_model.hpp"

namespace mikv::llama::architectures_test {
namespace {

using test::Architecture;
using test::kTinyVocabulary;
using test::kTinyWindow;

using ModelHandle = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using ContextHandle = std::unique_ptr<llama_context, decltype(&llama_free)>;

class Architectures : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mikv-tiny-XXXXXX";
    folder_ = mkdtemp(name);
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  ModelHandle load(Architecture architecture) {
    test::write_tiny_model(architecture, folder_ + "/model.gguf");
    return {llama_model_load_from_file((folder_ + "/model.gguf").c_str(), llama_model_default_params()),
            llama_model_free};
  }
  static llama_context_params params(bool unified) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 3072;
    params.n_batch = params.n_ubatch = 128;
    params.n_seq_max = 3;
    params.kv_unified = unified;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return params;
  }
  static ContextHandle stock(llama_model* model, const llama_context_params& params) {
    return {llama_init_from_model(model, params), llama_free};
  }
  static ContextHandle ours(llama_model* model, const llama_context_params& params, const char* spec) {
    auto context = init_context(model, params, Spec::parse(spec).value(), AttentionBy::engine);
    if (!context) throw std::runtime_error(context.message());
    return {context.value(), llama_free};
  }

  /// One batch: the next tokens of some sequences. Logits of the last token of each.
  static std::vector<float> step(llama_context* context,
                                 const std::vector<std::pair<llama_seq_id, std::vector<llama_token>>>& parts) {
    llama_batch batch = llama_batch_init(512, 0, 1);
    std::vector<int32_t> last;
    std::map<llama_seq_id, llama_pos> next;
    for (const auto& [sequence, tokens] : parts) {
      const auto known = next.find(sequence);
      llama_pos position =
          known == next.end() ? llama_memory_seq_pos_max(llama_get_memory(context), sequence) + 1 : known->second;
      next[sequence] = position + llama_pos(tokens.size());
      for (const llama_token token : tokens) {
        const int32_t i = batch.n_tokens++;
        batch.token[i] = token;
        batch.pos[i] = position++;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = false;
      }
      batch.logits[batch.n_tokens - 1] = true;
      last.push_back(batch.n_tokens - 1);
    }
    const int32_t code = llama_decode(context, batch);
    llama_batch_free(batch);
    if (code != 0)
      throw std::runtime_error("llama_decode: " + std::to_string(code) + " " + cache_of(context)->failure().message());
    std::vector<float> logits;
    for (const int32_t i : last)
      logits.insert(logits.end(), llama_get_logits_ith(context, i), llama_get_logits_ith(context, i) + kTinyVocabulary);
    return logits;
  }

  /// Prompts, steps of several sequences together, beyond the window, a sequence that ends, one that is copied, a state
  /// that is saved and loaded, positions that are shifted where the memory allows it. The logits of everything.
  static std::vector<std::vector<float>> script(llama_context* context) {
    std::mt19937 random(3);
    const auto words = [&](size_t n) {
      std::vector<llama_token> tokens(n);
      for (llama_token& token : tokens)
        token = std::uniform_int_distribution<llama_token>(0, kTinyVocabulary - 1)(random);
      return tokens;
    };
    const llama_memory_t memory = llama_get_memory(context);
    std::vector<std::vector<float>> all;
    for (int i = 0; i < 3; ++i) all.push_back(step(context, {{0, words(100)}}));
    all.push_back(step(context, {{0, words(1)}, {1, words(40)}}));
    for (int i = 0; i < kTinyWindow; ++i) all.push_back(step(context, {{0, words(1)}, {1, words(1)}}));
    llama_memory_seq_rm(memory, 0, -1, -1);
    all.push_back(step(context, {{1, words(3)}, {0, words(20)}, {1, words(2)}, {0, words(1)}}));
    llama_memory_seq_cp(memory, 1, 2, -1, -1);
    for (int i = 0; i < 10; ++i) all.push_back(step(context, {{2, words(1)}, {0, words(1)}}));
    std::vector<uint8_t> saved(llama_state_seq_get_size(context, 2));
    EXPECT_EQ(llama_state_seq_get_data(context, saved.data(), saved.size(), 2), saved.size());
    llama_memory_seq_rm(memory, 0, -1, -1);
    EXPECT_EQ(llama_state_seq_set_data(context, saved.data(), saved.size(), 0), saved.size());
    for (int i = 0; i < 5; ++i) all.push_back(step(context, {{0, words(1)}}));
    if (llama_memory_can_shift(memory)) {
      llama_memory_seq_add(memory, 0, 10, -1, 7);
      for (int i = 0; i < 5; ++i) all.push_back(step(context, {{0, words(1)}, {2, words(1)}}));
    }
    return all;
  }

  std::string folder_;
};

class KvArchitectures : public Architectures, public testing::WithParamInterface<std::tuple<Architecture, bool>> {};

TEST_P(KvArchitectures, FullIsStockToTheBit) {
  const auto [architecture, unified] = GetParam();
  const auto model = load(architecture);
  ASSERT_NE(model, nullptr);
  for (const bool whole_windows : {false, true}) {
    llama_context_params p = params(unified);
    p.swa_full = whole_windows;
    const auto a = stock(model.get(), p), b = ours(model.get(), p, "full");
    const auto expected = script(a.get()), got = script(b.get());
    ASSERT_EQ(expected.size(), got.size());
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_TRUE(expected[i] == got[i]) << "batch " << i << ", swa_full " << whole_windows;
    for (const float x : got.back()) ASSERT_TRUE(std::isfinite(x));
  }
}

// Attention layers only: the others have their own state, which llama.cpp keeps.
TEST_P(KvArchitectures, TiersTakeTheAttentionLayers) {
  const auto [architecture, unified] = GetParam();
  const auto model = load(architecture);
  llama_context_params p = params(unified);
  p.swa_full = false;
  const auto full = ours(model.get(), p, "full"), tiers = ours(model.get(), p, "mikv-hq:keep=0.3");
  EXPECT_EQ(cache_of(tiers.get())->layers().size(), architecture == Architecture::lfm2 ? 2u : 6u);
  const auto expected = script(full.get()), got = script(tiers.get());
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    for (size_t j = 0; j < got[i].size(); ++j)
      error += std::pow(got[i][j] - expected[i][j], 2), size += std::pow(expected[i][j], 2);
  }
  EXPECT_GT(error, 0.0);  // else nothing was compressed
  EXPECT_LT(std::sqrt(error / size), 0.15);
  const MemoryUsage usage = cache_of(tiers.get())->memory_usage();
  EXPECT_GT(usage.n_lo_tokens, 0u);
  EXPECT_LT(usage.total(), cache_of(full.get())->memory_usage().total());
}

INSTANTIATE_TEST_SUITE_P(Models, KvArchitectures,
                         testing::Combine(testing::Values(Architecture::gemma3, Architecture::lfm2), testing::Bool()),
                         [](const auto& parameter) {
                           return std::string(std::get<0>(parameter.param) == Architecture::gemma3 ? "SlidingWindow"
                                                                                                   : "Hybrid") +
                                  (std::get<1>(parameter.param) ? "Unified" : "Split");
                         });

TEST_F(Architectures, LoraChangesBothAlike) {
  const auto model = load(Architecture::gemma3);
  test::write_tiny_lora(folder_ + "/lora.gguf");
  llama_adapter_lora* lora = llama_adapter_lora_init(model.get(), (folder_ + "/lora.gguf").c_str());
  ASSERT_NE(lora, nullptr);
  const auto a = stock(model.get(), params(true)), b = ours(model.get(), params(true), "full"),
             plain = ours(model.get(), params(true), "full");
  float scale = 1.0f;
  for (llama_context* context : {a.get(), b.get()}) ASSERT_EQ(llama_set_adapters_lora(context, &lora, 1, &scale), 0);
  const auto expected = script(a.get()), got = script(b.get());
  EXPECT_EQ(expected, got);
  EXPECT_NE(script(plain.get()), got);
}

// In a program that was told to keep its KV cache in mikv and has none.
TEST_F(Architectures, ModelsWithoutKvAreLeftAlone) {
  for (const Architecture architecture : {Architecture::mamba, Architecture::bert}) {
    const auto model = load(architecture);
    ASSERT_NE(model, nullptr);
    llama_context_params p = params(false);
    p.embeddings = architecture == Architecture::bert;
    p.pooling_type = LLAMA_POOLING_TYPE_NONE;
    std::vector<std::vector<float>> results;
    for (const bool with_mikv : {false, true}) {
      if (with_mikv) use_drop_in(DropIn::parse({"--kv", "mikv"}, {}, {}).value());
      const auto context = stock(model.get(), p);
      if (with_mikv) stop_drop_in();
      ASSERT_NE(context, nullptr);
      EXPECT_EQ(Registry::get().of_context(context.get()), nullptr);
      std::vector<float> result;
      if (architecture == Architecture::mamba) {
        for (const auto& logits : script(context.get())) result.insert(result.end(), logits.begin(), logits.end());
      } else {
        std::vector<llama_token> tokens;
        for (llama_token t = 0; t < 50; ++t) tokens.push_back(t * 2);
        ASSERT_EQ(llama_encode(context.get(), llama_batch_get_one(tokens.data(), int32_t(tokens.size()))), 0);
        const float* embedding = llama_get_embeddings_ith(context.get(), 49);
        ASSERT_NE(embedding, nullptr);
        result.assign(embedding, embedding + llama_model_n_embd(model.get()));
      }
      results.push_back(result);
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_FALSE(results[0].empty());
  }
}

}  // namespace
}  // namespace mikv::llama::architectures_test
