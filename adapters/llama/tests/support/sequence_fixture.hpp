// The model that MIKV_TEST_MODEL names, contexts of it, stock and ours, and what tests of sequences do with them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kv_context.hpp"
#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama::test {

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ModelHandle = std::unique_ptr<llama_model, ModelDeleter>;
using ContextHandle = std::unique_ptr<llama_context, ContextDeleter>;

constexpr uint32_t kSequences = 4;

/// Loads the model once for all tests of a suite.
class SequenceOperations : public testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();

  static llama_context_params params(bool unified, uint32_t n_ctx = 2048);
  static ContextHandle stock(bool unified);
  /// Stock as well: right, and rounded otherwise.
  static ContextHandle without_flash_attention(bool unified);
  static ContextHandle ours(const char* spec, bool unified, AttentionBy attention_by = AttentionBy::mikv,
                            uint32_t n_ctx = 2048);

  /// Appends tokens to a sequence; logits after the last one. Empty, and the test has failed, if that was refused.
  static std::vector<float> feed(llama_context* context, llama_seq_id sequence, const std::vector<llama_token>& tokens);

  static ModelHandle model_;
};

/// On caches that all sequences share, and on split ones.
class Tiers : public SequenceOperations, public testing::WithParamInterface<bool> {};

/// Common words, so that the model is about as sure of what follows as in a text.
std::vector<llama_token> words(std::mt19937& random, size_t n);

/// Root mean square of the differences; infinite where one is no number.
double rms(const std::vector<float>& a, const std::vector<float>& b);
/// Kullback-Leibler divergence of what the logits `from` predict from what the logits `of` predict.
double divergence(const std::vector<float>& of, const std::vector<float>& from);

/// The state of a sequence, as llama.cpp's callers ask for it.
std::string save(llama_context* context, llama_seq_id sequence);

}  // namespace mikv::llama::test
