// llama.cpp and a program of one's own choose the same tiers: a context that keeps its own cells is given the queries,
// keys and values that llama.cpp computes, and then holds each token in the same tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "context/context_impl.hpp"
#include "interpose/punctuation.hpp"
#include "mikv/inspect.hpp"
#include "sequence_fixture.hpp"

namespace mikv::llama::test {
namespace {

/// What llama.cpp computed last under a name, [n_tokens][n_heads][head_dim].
struct Rows {
  uint32_t head_dim = 0, n_heads = 0, n_tokens = 0;
  std::vector<float> values;
};
using Recorded = std::map<std::string, Rows>;

/// llama.cpp's callback for tensors: asks for, and then records, the queries, keys and values of all layers. A name is
/// used twice, before and after RoPE; the later one stays.
bool record(ggml_tensor* tensor, bool ask, void* to) {
  const std::string name = ggml_get_name(tensor);
  const bool wanted = name.find(' ') == std::string::npos &&  // "Qcur-0 (reshaped)" is another
                      (name.starts_with("Qcur-") || name.starts_with("Kcur-") || name.starts_with("Vcur-"));
  if (ask) return wanted;
  if (!wanted || tensor->type != GGML_TYPE_F32 || !ggml_is_contiguous(tensor)) return true;
  Rows& rows = (*static_cast<Recorded*>(to))[name];
  rows.head_dim = uint32_t(tensor->ne[0]);
  rows.n_heads = uint32_t(tensor->ne[1]);
  rows.n_tokens = uint32_t(tensor->ne[2]);
  rows.values.resize(size_t(ggml_nelements(tensor)));
  ggml_backend_tensor_get(tensor, rows.values.data(), 0, rows.values.size() * sizeof(float));
  return true;
}

/// The token of a text that is one.
llama_token id_of(const llama_model* model, std::string_view text) {
  std::array<llama_token, 8> ids{};
  const int32_t n = llama_tokenize(llama_model_get_vocab(model), text.data(), int32_t(text.size()), ids.data(),
                                   int32_t(ids.size()), false, true);
  EXPECT_EQ(n, 1) << text;
  return ids[0];
}

class SameTiers : public SequenceOperations, public testing::WithParamInterface<const char*> {
 protected:
  static LayerShape shape_of(const Recorded& recorded, const std::string& layer) {
    const Rows &q = recorded.at("Qcur-" + layer), &k = recorded.at("Kcur-" + layer), &v = recorded.at("Vcur-" + layer);
    return {.n_heads = q.n_heads, .n_kv_heads = k.n_heads, .head_dim_k = k.head_dim, .head_dim_v = v.head_dim};
  }

  /// The step that llama.cpp took, in a context of one's own.
  static void repeat(Context& own, const Recorded& recorded, const std::vector<bool>& punctuation) {
    const uint32_t n = recorded.begin()->second.n_tokens;
    ASSERT_EQ(punctuation.size(), n);
    Batch batch;
    for (uint32_t i = 0; i < n; ++i)
      batch.tokens.push_back({0, i + 1 == n, own.last_position(0) + 1 + Position(i), punctuation[i]});
    ASSERT_TRUE(own.begin_step(batch).ok());
    for (const int layer : own.layers()) {
      const std::string number = std::to_string(layer);
      const Rows &q = recorded.at("Qcur-" + number), &k = recorded.at("Kcur-" + number),
                 &v = recorded.at("Vcur-" + number);
      ASSERT_TRUE(own.store(layer, {}, k.values.data(), size_t{k.n_heads} * k.head_dim, v.values.data(),
                            size_t{v.n_heads} * v.head_dim, n)
                      .ok());
      std::vector<float> out(size_t{n} * q.n_heads * v.head_dim);
      AttendArgs args;
      args.q = q.values.data();
      args.q_head_stride = q.head_dim;
      args.q_token_stride = size_t{q.n_heads} * q.head_dim;
      args.out = out.data();
      args.out_head_stride = v.head_dim;
      args.out_token_stride = size_t{q.n_heads} * v.head_dim;
      args.n_tokens = n;
      args.scale = 1.0f / std::sqrt(float(q.head_dim));
      ASSERT_TRUE(own.attend(layer, {&args, 1}).ok());
    }
    ASSERT_TRUE(own.end_step().ok());
  }

  /// Tiers by cell. A prompt at the beginning of a split context fills its cells in order: cells are positions.
  static std::map<Position, TokenTier> tiers_of_engine(const Context& context, int layer, uint32_t kv_head) {
    std::map<Position, TokenTier> tiers;
    for (const SegmentId segment : impl_of(context).sequences.seen_by(0)) {
      for (const StoredToken& token : impl_of(context).layers.find(layer)->cache->dump(segment, kv_head))
        tiers[Position(token.cell)] = token.tier;
    }
    return tiers;
  }
};

TEST_F(SequenceOperations, PunctuationIsToldByItsText) {
  const std::vector<bool> punctuation = punctuation_of(model_.get());
  EXPECT_EQ(punctuation.size(), size_t(llama_vocab_n_tokens(llama_model_get_vocab(model_.get()))));
  for (const char* text : {",", ".", ";", "!", "(", " -", ").", "`"})
    EXPECT_TRUE(punctuation[id_of(model_.get(), text)]) << text;
  for (const char* text : {"a", " the", "1", "\n", " ", "'s", "<|im_end|>"})
    EXPECT_FALSE(punctuation[id_of(model_.get(), text)]) << text;
}

TEST_P(SameTiers, InLlamaCppAndInAContextOfOnesOwn) {
  Recorded recorded;
  llama_context_params with_callback = params(false);
  with_callback.cb_eval = record;
  with_callback.cb_eval_user_data = &recorded;
  const Spec spec = Spec::parse(GetParam()).value();
  const ContextHandle engine(init_context(model_.get(), with_callback, spec).value());
  std::unique_ptr<Context> own;
  const std::vector<bool> in_vocabulary = punctuation_of(model_.get());
  const llama_token comma = id_of(model_.get(), ",");
  std::mt19937 random(31);
  // A prompt, which the token after it compresses, and tokens of which each demotes another.
  for (int step = 0; step < 12; ++step) {
    recorded.clear();
    std::vector<llama_token> text = words(random, step ? 1 : 300);
    for (size_t i = 4; i < text.size(); i += 5) text[i] = comma;
    if (step % 3 == 2) text = {comma};
    std::vector<bool> punctuation;
    for (const llama_token id : text) punctuation.push_back(in_vocabulary[size_t(id)]);
    ASSERT_FALSE(feed(engine.get(), 0, text).empty());
    ASSERT_EQ(recorded.size(), 3 * cache_of(engine.get())->layers().size());
    if (!own) {
      own = Context::create({.spec = spec, .n_cells = 2048}).value();
      for (const int layer : cache_of(engine.get())->layers())
        ASSERT_TRUE(own->add_layer(layer, shape_of(recorded, std::to_string(layer))).ok());
    }
    repeat(*own, recorded, punctuation);
  }
  uint64_t n_hi = 0, n_tokens = 0;
  for (const int layer : own->layers()) {
    for (uint32_t head = 0; head < own->shape(layer).n_kv_heads; ++head) {
      std::map<Position, TokenTier> tiers;
      const auto held = tokens_of(*own, layer, head, 0);
      ASSERT_TRUE(held.ok()) << held.message();
      for (const TokenState& token : held.value()) tiers[token.position] = token.tier;
      EXPECT_EQ(tiers, tiers_of_engine(*cache_of(engine.get()), layer, head)) << "layer " << layer << ", head " << head;
      n_tokens += tiers.size();
      for (const auto& [position, tier] : tiers) n_hi += tier == TokenTier::hi;
    }
  }
  EXPECT_GT(n_tokens, 0u);
  EXPECT_GT(n_hi, n_tokens / 50);
  EXPECT_LT(n_hi, n_tokens / 2);
}

INSTANTIATE_TEST_SUITE_P(Specs, SameTiers, testing::Values("mikv", "h2o", "mikv-paper", "fastgen:recovery=0.4"),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           std::ranges::replace_if(
                               name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
                           return name;
                         });

}  // namespace
}  // namespace mikv::llama::test
