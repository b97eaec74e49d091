#include "sequence_fixture.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace mikv::llama::test {

ModelHandle SequenceOperations::model_;

void SequenceOperations::SetUpTestSuite() {
  const char* path = std::getenv("MIKV_TEST_MODEL");
  ASSERT_NE(path, nullptr) << "MIKV_TEST_MODEL must name a GGUF file; `mikv model path smollm2-135m` prints one";
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  model_.reset(llama_model_load_from_file(path, llama_model_default_params()));
  ASSERT_NE(model_, nullptr);
}

void SequenceOperations::TearDownTestSuite() { model_.reset(); }

llama_context_params SequenceOperations::params(bool unified, uint32_t n_ctx) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = n_ctx;
  params.n_batch = params.n_ubatch = 512;
  params.n_seq_max = kSequences;
  params.kv_unified = unified;
  params.n_threads = params.n_threads_batch = 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  return params;
}

ContextHandle SequenceOperations::stock(bool unified) {
  return ContextHandle(llama_init_from_model(model_.get(), params(unified)));
}

ContextHandle SequenceOperations::without_flash_attention(bool unified) {
  llama_context_params other = params(unified);
  other.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  return ContextHandle(llama_init_from_model(model_.get(), other));
}

ContextHandle SequenceOperations::ours(const char* spec, bool unified, AttentionBy attention_by, uint32_t n_ctx) {
  auto context = init_context(model_.get(), params(unified, n_ctx), Spec::parse(spec).value(), attention_by);
  EXPECT_TRUE(context.ok()) << context.message();
  return ContextHandle(context.value());
}

std::vector<float> SequenceOperations::feed(llama_context* context, llama_seq_id sequence,
                                            const std::vector<llama_token>& tokens) {
  llama_batch batch = llama_batch_init(int32_t(tokens.size()), 0, 1);
  llama_pos position = llama_memory_seq_pos_max(llama_get_memory(context), sequence) + 1;
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = position++;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequence;
    batch.logits[i] = i + 1 == tokens.size();
  }
  batch.n_tokens = int32_t(tokens.size());
  const int32_t code = llama_decode(context, batch);
  llama_batch_free(batch);
  EXPECT_EQ(code, 0) << cache_of(context)->failure().message();
  if (code != 0) return {};
  const float* logits = llama_get_logits_ith(context, -1);
  return {logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model_.get()))};
}

std::vector<llama_token> words(std::mt19937& random, size_t n) {
  std::uniform_int_distribution<llama_token> any(260, 2000);
  std::vector<llama_token> tokens(n);
  for (llama_token& token : tokens) token = any(random);
  return tokens;
}

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
  return std::isnan(sum) ? INFINITY : std::sqrt(sum / double(a.size()));
}

double divergence(const std::vector<float>& of, const std::vector<float>& from) {
  const auto log_sum = [](const std::vector<float>& x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0.0;
    for (const float v : x) sum += std::exp(v - most);
    return most + std::log(sum);
  };
  const double a = log_sum(of), b = log_sum(from);
  double sum = 0.0;
  for (size_t i = 0; i < of.size(); ++i) sum += std::exp(of[i] - a) * ((of[i] - a) - (from[i] - b));
  return sum;
}

std::string save(llama_context* context, llama_seq_id sequence) {
  std::string bytes(llama_state_seq_get_size(context, sequence), '\0');
  EXPECT_EQ(llama_state_seq_get_data(context, reinterpret_cast<uint8_t*>(bytes.data()), bytes.size(), sequence),
            bytes.size());
  return bytes;
}

}  // namespace mikv::llama::test
