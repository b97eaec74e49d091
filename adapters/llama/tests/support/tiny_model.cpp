#include "tiny_model.hpp"

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace mikv::llama::test {
namespace {

constexpr int kWidth = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kInner = 96, kLayers = 6, kContext = 4096;

/// A GGUF file in the making; names are those of llama.cpp (llama-arch.cpp).
class Builder {
 public:
  explicit Builder(const std::string& architecture)
      : architecture_(architecture),
        file_(gguf_init_empty(), gguf_free),
        tensors_(ggml_init({size_t{64} << 20, nullptr, false}), ggml_free) {
    gguf_set_val_str(file_.get(), "general.architecture", architecture.c_str());
  }

  void model() {
    gguf_set_val_str(file_.get(), "tokenizer.ggml.model", "no_vocab");
    set("vocab_size", kTinyVocabulary);
    set("context_length", kContext);
    set("embedding_length", kWidth);
    set("block_count", kLayers);
    set("feed_forward_length", kInner);
    set("attention.head_count", kHeads);
    set_float("attention.layer_norm_rms_epsilon", 1e-5f);
    set_float("attention.layer_norm_epsilon", 1e-5f);
    matrix("token_embd.weight", kWidth, kTinyVocabulary);
  }
  void lora() {
    gguf_set_val_str(file_.get(), "general.type", "adapter");
    gguf_set_val_str(file_.get(), "adapter.type", "lora");
    gguf_set_val_f32(file_.get(), "adapter.lora.alpha", 4.0f);
  }

  std::string key(const char* name) const { return architecture_ + "." + name; }
  void set(const char* name, uint32_t value) { gguf_set_val_u32(file_.get(), key(name).c_str(), value); }
  void set_tokenizer(const char* name, uint32_t value) {
    gguf_set_val_u32(file_.get(), (std::string("tokenizer.ggml.") + name).c_str(), value);
  }
  void set_bool(const char* name, bool value) { gguf_set_val_bool(file_.get(), key(name).c_str(), value); }
  void set_float(const char* name, float value) { gguf_set_val_f32(file_.get(), key(name).c_str(), value); }
  void set_array(const char* name, const std::vector<uint32_t>& values) {
    gguf_set_arr_data(file_.get(), key(name).c_str(), GGUF_TYPE_UINT32, values.data(), values.size());
  }

  /// Rows of this length, drawn so that what they multiply keeps its size.
  void matrix(const std::string& name, int64_t row, int64_t n_rows, float about = 0.0f) {
    fill(name, ggml_new_tensor_2d(tensors_.get(), GGML_TYPE_F32, row, n_rows), about, 1.5f / std::sqrt(float(row)));
  }
  void vector(const std::string& name, int64_t n, float about = 1.0f) {
    fill(name, ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_F32, n), about, 0.1f);
  }
  void attention(const std::string& layer, bool norms) {
    matrix(layer + "attn_q.weight", kWidth, kHeads * kHeadDim);
    matrix(layer + "attn_k.weight", kWidth, kKvHeads * kHeadDim);
    matrix(layer + "attn_v.weight", kWidth, kKvHeads * kHeadDim);
    matrix(layer + "attn_output.weight", kHeads * kHeadDim, kWidth);
    if (!norms) return;
    vector(layer + "attn_q_norm.weight", kHeadDim);
    vector(layer + "attn_k_norm.weight", kHeadDim);
  }
  void feed_forward(const std::string& layer, bool gate) {
    if (gate) matrix(layer + "ffn_gate.weight", kWidth, kInner);
    matrix(layer + "ffn_up.weight", kWidth, kInner);
    matrix(layer + "ffn_down.weight", kInner, kWidth);
  }
  void write(const std::string& path) {
    if (!gguf_write_to_file(file_.get(), path.c_str(), false)) throw std::runtime_error("cannot write " + path);
  }

 private:
  void fill(const std::string& name, ggml_tensor* tensor, float about, float spread) {
    std::normal_distribution<float> draw(about, spread);
    for (int64_t i = 0; i < ggml_nelements(tensor); ++i) static_cast<float*>(tensor->data)[i] = draw(random_);
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(file_.get(), tensor);
  }

  std::string architecture_;
  std::unique_ptr<gguf_context, decltype(&gguf_free)> file_;
  std::unique_ptr<ggml_context, decltype(&ggml_free)> tensors_;
  std::mt19937 random_{42};
};

std::string layer_name(int layer) { return "blk." + std::to_string(layer) + "."; }

void gemma3(Builder& model) {
  model.set("attention.head_count_kv", kKvHeads);
  model.set("attention.key_length", kHeadDim);
  model.set("attention.value_length", kHeadDim);
  model.set("attention.sliding_window", kTinyWindow);
  model.set("attention.sliding_window_pattern", 3);
  model.vector("output_norm.weight", kWidth);
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = layer_name(i);
    for (const char* norm :
         {"attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"}) {
      model.vector(layer + norm, kWidth);
    }
    model.attention(layer, true);
    model.feed_forward(layer, true);
  }
}

void lfm2(Builder& model) {
  constexpr int kTaps = 3;
  std::vector<uint32_t> kv_heads;
  for (int i = 0; i < kLayers; ++i) kv_heads.push_back(i % 3 == 2 ? kKvHeads : 0);
  model.set_array("attention.head_count_kv", kv_heads);
  model.set("shortconv.l_cache", kTaps);
  model.vector("token_embd_norm.weight", kWidth);
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = layer_name(i);
    model.vector(layer + "attn_norm.weight", kWidth);
    model.vector(layer + "ffn_norm.weight", kWidth);
    model.feed_forward(layer, true);
    if (kv_heads[size_t(i)]) {
      model.attention(layer, true);
      continue;
    }
    model.matrix(layer + "shortconv.conv.weight", kTaps, kWidth);
    model.matrix(layer + "shortconv.in_proj.weight", kWidth, 3 * kWidth);
    model.matrix(layer + "shortconv.out_proj.weight", kWidth, kWidth);
  }
}

void mamba(Builder& model) {
  constexpr int kTaps = 4, kState = 16, kRank = 4, kWide = 2 * kWidth;
  model.set("ssm.conv_kernel", kTaps);
  model.set("ssm.inner_size", kWide);
  model.set("ssm.state_size", kState);
  model.set("ssm.time_step_rank", kRank);
  model.vector("output_norm.weight", kWidth);
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = layer_name(i);
    model.vector(layer + "attn_norm.weight", kWidth);
    model.matrix(layer + "ssm_in.weight", kWidth, 2 * kWide);
    model.matrix(layer + "ssm_conv1d.weight", kTaps, kWide);
    model.vector(layer + "ssm_conv1d.bias", kWide, 0.0f);
    model.matrix(layer + "ssm_x.weight", kWide, kRank + 2 * kState);
    model.matrix(layer + "ssm_dt.weight", kRank, kWide);
    model.vector(layer + "ssm_dt.bias", kWide, 0.0f);
    model.matrix(layer + "ssm_a", kState, kWide, -3.0f);  // states decay
    model.vector(layer + "ssm_d", kWide);
    model.matrix(layer + "ssm_out.weight", kWide, kWidth);
  }
}

void bert(Builder& model) {
  model.set_tokenizer("token_type_count", 2);
  model.set_bool("attention.causal", false);
  model.matrix("position_embd.weight", kWidth, kContext);
  model.vector("token_embd_norm.weight", kWidth);
  model.vector("token_embd_norm.bias", kWidth, 0.0f);
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = layer_name(i);
    for (const char* projection : {"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"})
      model.matrix(layer + projection, kWidth, kWidth);
    for (const char* norm : {"attn_output_norm", "layer_output_norm"}) {
      model.vector(layer + norm + ".weight", kWidth);
      model.vector(layer + norm + ".bias", kWidth, 0.0f);
    }
    model.feed_forward(layer, false);
  }
}

}  // namespace

void write_tiny_model(Architecture architecture, const std::string& path) {
  constexpr const char* kNames[] = {"gemma3", "lfm2", "mamba", "bert"};
  Builder model(kNames[int(architecture)]);
  model.model();
  switch (architecture) {
    case Architecture::gemma3: gemma3(model); break;
    case Architecture::lfm2: lfm2(model); break;
    case Architecture::mamba: mamba(model); break;
    case Architecture::bert: bert(model); break;
  }
  model.write(path);
}

void write_tiny_lora(const std::string& path) {
  constexpr int kRank = 4;
  Builder lora("gemma3");
  lora.lora();
  for (int i = 0; i < kLayers; ++i) {
    for (const auto& [name, n_rows] : {std::pair("attn_q", kHeads * kHeadDim), std::pair("attn_k", kKvHeads * kHeadDim),
                                       std::pair("attn_v", kKvHeads * kHeadDim)}) {
      lora.matrix(layer_name(i) + name + ".weight.lora_a", kWidth, kRank);
      lora.matrix(layer_name(i) + name + ".weight.lora_b", kRank, n_rows);
    }
  }
  lora.write(path);
}

}  // namespace mikv::llama::test
