// Loading models: a file is examined first, because llama.cpp reports a missing, a foreign and a truncated file alike.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "chat.h"
#include "common.h"
#include "engine/engine.hpp"
#include "engine/llama_log.hpp"
#include "gguf.h"
#include "llama.h"
#include "log.h"

namespace mikv::llama {
namespace {

std::atomic<bool> verbose_log = false;
std::string first_error;  // written and read by the thread that calls llama.cpp

void on_llama_log(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
    first_error = text;
    while (!first_error.empty() && first_error.back() == '\n') first_error.pop_back();
  }
  if (verbose_log) std::fputs(text, stderr);
}

struct GgufDeleter {
  void operator()(gguf_context* gguf) const { gguf_free(gguf); }
};
using GgufPtr = std::unique_ptr<gguf_context, GgufDeleter>;

/// Bytes that the file must have, from its own table of tensors.
uint64_t expected_file_bytes(const gguf_context* gguf) {
  uint64_t end = gguf_get_data_offset(gguf);
  for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
    end = std::max<uint64_t>(
        end, gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i) + gguf_get_tensor_size(gguf, i));
  }
  return end;
}

/// The file's header, or what is wrong with the file.
Result<GgufPtr> examine(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return Error{"no model file \"" + path + "\"; give -m a GGUF file or a name from `mikv model list`"};
  }
  if (std::filesystem::is_directory(status))
    return Error{"\"" + path + "\" is a directory; give -m the GGUF file in it"};
  std::ifstream file(path, std::ios::binary);
  if (!file) return Error{"cannot read model \"" + path + "\": " + std::strerror(errno) + "; check its permissions"};
  char magic[4] = {};
  file.read(magic, sizeof magic);
  if (file.gcount() != sizeof magic || std::memcmp(magic, GGUF_MAGIC, sizeof magic) != 0) {
    return Error{"\"" + path +
                 "\" is not a GGUF file; convert it with llama.cpp's convert_hf_to_gguf.py, or take a name from `mikv "
                 "model list`"};
  }
  GgufPtr gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (!gguf) return Error{"the header of model \"" + path + "\" is damaged or cut short; fetch the file again"};
  const uint64_t expected = expected_file_bytes(gguf.get());
  const uint64_t actual = std::filesystem::file_size(path, error);
  if (actual < expected) {
    return Error{"model \"" + path + "\" is truncated: it has " + std::to_string(actual) + " of " +
                 std::to_string(expected) + " bytes; fetch the file again"};
  }
  return gguf;
}

/// Value of an integer key that holds one number for all layers, or one for each.
uint32_t layer_value(const gguf_context* gguf, const std::string& key, uint32_t layer, uint32_t otherwise) {
  const int64_t id = gguf_find_key(gguf, key.c_str());
  if (id < 0) return otherwise;
  auto read = [](gguf_type type, const void* data, uint32_t i) -> uint32_t {
    switch (type) {
      case GGUF_TYPE_UINT32: return static_cast<const uint32_t*>(data)[i];
      case GGUF_TYPE_INT32: return uint32_t(static_cast<const int32_t*>(data)[i]);
      case GGUF_TYPE_UINT16: return static_cast<const uint16_t*>(data)[i];
      case GGUF_TYPE_UINT64: return uint32_t(static_cast<const uint64_t*>(data)[i]);
      default: return 0;
    }
  };
  if (gguf_get_kv_type(gguf, id) != GGUF_TYPE_ARRAY)
    return read(gguf_get_kv_type(gguf, id), gguf_get_val_data(gguf, id), 0);
  if (layer >= gguf_get_arr_n(gguf, id)) return otherwise;
  return read(gguf_get_arr_type(gguf, id), gguf_get_arr_data(gguf, id), layer);
}

std::vector<LayerShape> layer_shapes(const gguf_context* gguf, const std::string& arch, const llama_model* model) {
  std::vector<LayerShape> shapes;
  for (uint32_t il = 0; il < uint32_t(llama_model_n_layer(model)); ++il) {
    LayerShape shape;
    shape.n_heads = layer_value(gguf, arch + ".attention.head_count", il, 0);
    shape.n_kv_heads = layer_value(gguf, arch + ".attention.head_count_kv", il, shape.n_heads);
    if (shape.n_heads == 0 || shape.n_kv_heads == 0) continue;  // a layer without attention
    const uint32_t head_dim = uint32_t(llama_model_n_embd(model)) / shape.n_heads;
    shape.head_dim_k = layer_value(gguf, arch + ".attention.key_length", il, head_dim);
    shape.head_dim_v = layer_value(gguf, arch + ".attention.value_length", il, head_dim);
    shapes.push_back(shape);
  }
  return shapes;
}

ModelInfo read_info(const std::string& path, const gguf_context* gguf, const llama_model* model) {
  ModelInfo info;
  info.path = path;
  const int64_t arch = gguf_find_key(gguf, "general.architecture");
  if (arch >= 0) info.architecture = gguf_get_val_str(gguf, arch);
  char description[128] = {};
  llama_model_desc(model, description, sizeof description);
  info.description = description;
  info.n_params = llama_model_n_params(model);
  info.n_bytes = llama_model_size(model);
  info.n_ctx_train = uint32_t(llama_model_n_ctx_train(model));
  info.sliding_window = uint32_t(std::max(0, llama_model_n_swa(model)));
  info.layers = layer_shapes(gguf, info.architecture, model);
  return info;
}

}  // namespace

void set_verbose(bool verbose) {
  verbose_log = verbose;
  llama_log_set(on_llama_log, nullptr);
  if (!verbose) common_log_set_verbosity_thold(-1);
}

void forget_llama_errors() { first_error.clear(); }
std::string first_llama_error() {
  return first_error.empty() ? "no reason given; --verbose shows its log" : first_error;
}

std::string llama_version() { return ::llama_version(); }

int default_threads() { return std::max(1, int(common_cpu_get_num_math())); }

Result<std::unique_ptr<Model>> Model::load(const std::string& path) {
  auto gguf = examine(path);
  if (!gguf) return gguf.error();
  static const bool backend_ready = (llama_backend_init(), true);
  (void)backend_ready;
  llama_model_params params = llama_model_default_params();
  forget_llama_errors();
  llama_model* loaded = llama_model_load_from_file(path.c_str(), params);
  if (!loaded) return Error{"llama.cpp cannot load \"" + path + "\": " + first_llama_error()};
  std::unique_ptr<Model> model(new Model(loaded));
  model->info_ = read_info(path, gguf.value().get(), loaded);
  return model;
}

Model::~Model() { llama_model_free(model_); }

std::vector<Token> Model::tokenize(const std::string& text, bool special) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  const auto run = [&](std::vector<Token>& tokens) {
    return llama_tokenize(vocab, text.data(), int32_t(text.size()), tokens.data(), int32_t(tokens.size()), special,
                          special);
  };
  std::vector<Token> tokens(text.size() + 2);  // enough for most vocabularies
  int32_t n = run(tokens);
  if (n < 0) {  // -n is the size it wants
    tokens.resize(size_t(-n));
    n = run(tokens);
  }
  tokens.resize(size_t(std::max(n, 0)));
  return tokens;
}

std::string Model::piece(Token token) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  std::string text(32, '\0');
  int32_t n = llama_token_to_piece(vocab, token, text.data(), int32_t(text.size()), 0, false);
  if (n < 0) {  // -n is the size it wants
    text.resize(size_t(-n));
    n = llama_token_to_piece(vocab, token, text.data(), int32_t(text.size()), 0, false);
  }
  text.resize(size_t(std::max(n, 0)));
  return text;
}

bool Model::is_end_of_generation(Token token) const { return llama_vocab_is_eog(llama_model_get_vocab(model_), token); }

uint32_t Model::n_vocab() const { return uint32_t(llama_vocab_n_tokens(llama_model_get_vocab(model_))); }

bool Model::has_chat_template() const { return llama_model_chat_template(model_, nullptr) != nullptr; }

Result<std::string> Model::chat_prompt(const std::string& user_message) const {
  try {
    const auto templates = common_chat_templates_init(model_, "");
    common_chat_msg message;
    message.role = "user";
    message.content = user_message;
    common_chat_templates_inputs inputs;
    inputs.messages = {message};
    // tokenize() adds BOS, so the template's own must go.
    inputs.add_bos = llama_vocab_get_add_bos(llama_model_get_vocab(model_));
    return common_chat_templates_apply(templates.get(), inputs).prompt;
  } catch (const std::exception& failure) {
    return Error{std::string("the model's chat template cannot be rendered: ") + failure.what() + "; use --raw"};
  }
}

}  // namespace mikv::llama
