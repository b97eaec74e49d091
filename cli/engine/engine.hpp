// The engine as the command line sees it: models, and contexts that keep their KV cache under one choice of cache.
//
// A KvChoice is one element of a --kv list: a mikv spec ("mikv:keep=0.2"), or "llama:TYPE", stock llama.cpp with that
// cache type (flash attention on, as in llama-server). "llama:TYPE:prefill=exact" reads the prompt with the full cache
// and then stores it, as mikv's specs do by default; plain llama.cpp reads it with what it has stored so far.
// The rest of the program does not know which one it got.
// No llama.cpp header is needed to use this file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mikv/context.hpp"
#include "mikv/spec.hpp"
#include "mikv/static_balancer.hpp"

struct llama_model;
struct llama_context;
struct llama_sampler;

namespace mikv::llama {

using Token = int32_t;

/// One element of a --kv list.
struct KvChoice {
  std::string name;           ///< as the user wrote it; the name in tables
  std::optional<Spec> spec;   ///< empty: stock llama.cpp with `stock_type`
  int stock_type = -1;        ///< a ggml_type
  bool takes_prompt = false;  ///< stock with prefill=exact: its prompt comes from EngineContext::take_prompt()

  bool stock() const { return !spec.has_value(); }
  /// Errors: an unknown preset, key or cache type; the message names those that would do.
  static Result<KvChoice> parse(std::string_view text);
};

/// Parses "full,mikv:keep=0.2,hi=f16,llama:q4_0". Errors: as KvChoice::parse; an empty list; the same element twice.
Result<std::vector<KvChoice>> parse_kv_list(std::string_view list);

/// Cache types that llama:TYPE takes.
std::string stock_type_names();

/// llama.cpp's log on stderr, or nothing (the default). Call before anything else.
void set_verbose(bool verbose);
std::string llama_version();
int default_threads();  ///< llama.cpp's default: the physical cores

/// Fetches "user/model[:quant]" from Hugging Face with llama.cpp's own download code (its cache, its HF_TOKEN) and
/// returns the file. Errors: no network; no such repository; no GGUF in it.
Result<std::string> fetch_hugging_face(const std::string& repo);

struct ModelInfo {
  std::string path;
  std::string architecture;  ///< "qwen2"
  std::string description;   ///< "qwen2 1.5B Q4_K - Medium"
  uint64_t n_params = 0;
  uint64_t n_bytes = 0;  ///< of the weights
  uint32_t n_ctx_train = 0;
  uint32_t sliding_window = 0;     ///< tokens; 0: no layer has one
  std::vector<LayerShape> layers;  ///< of the layers that keep K and V
};

class Model {
 public:
  /// Errors: no such file; not a GGUF; cut short; refused by llama.cpp, whose message is passed on.
  static Result<std::unique_ptr<Model>> load(const std::string& path);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelInfo& info() const { return info_; }

  /// special: add BOS if the model wants one, and read "<|im_start|>" and the like as the tokens they name.
  std::vector<Token> tokenize(const std::string& text, bool special) const;
  std::string piece(Token token) const;  ///< may be a part of a UTF-8 character; empty for control tokens
  bool is_end_of_generation(Token token) const;
  uint32_t n_vocab() const;

  bool has_chat_template() const;
  /// The user's message in the model's own chat template, up to where the assistant's answer begins.
  /// Error: the template cannot be rendered.
  Result<std::string> chat_prompt(const std::string& user_message) const;

  llama_model* get() const { return model_; }

 private:
  explicit Model(llama_model* model) : model_(model) {}
  llama_model* model_;
  ModelInfo info_;
};

struct EngineOptions {
  uint32_t n_ctx = 4096;
  uint32_t n_ubatch = 512;  ///< tokens that pass through the model at once; also the chunk of prefill=streaming
  int n_threads = 1;
  bool rewindable = false;            ///< sliding-window layers keep all tokens, so that truncate() works at any depth
  std::function<bool()> should_stop;  ///< called often while computing; true fails the running step soon
};

/// A prompt that is computed once, for several specs to start from.
struct Checkpoint {
  std::shared_ptr<const Snapshot> snapshot;
  uint32_t n_past = 0;
};

class EngineContext {
 public:
  /// Errors: the model's attention is not supported by mikv; llama.cpp could not create the context.
  static Result<std::unique_ptr<EngineContext>> create(const Model& model, const KvChoice& kv,
                                                       const EngineOptions& options);
  ~EngineContext();
  EngineContext(const EngineContext&) = delete;
  EngineContext& operator=(const EngineContext&) = delete;

  /// Appends tokens; logits() then follow the last one. progress(tokens done) is called after each chunk.
  /// Errors: more tokens than n_ctx() has left (nothing is computed then); stopped; a step failed.
  Status prefill(std::span<const Token> tokens, const std::function<void(size_t)>& progress = {});
  /// Appends one generated token. The first one after a prompt ends that prompt. Errors: as prefill.
  Status decode(Token token);
  std::span<const float> logits() const;  ///< [n_vocab], valid until the next call

  uint32_t n_past() const { return n_past_; }
  uint32_t n_ctx() const { return options_.n_ctx; }

  /// Compresses the prompt, if the cache compresses.
  Status end_prompt();
  /// Forgets the tokens from `n` on. Error: the model cannot (recurrent state).
  Status truncate(uint32_t n);
  void reset();
  /// Takes the uncompressed prompt of a context of mikv instead of a prefill. Errors: as copy_prompt
  /// (stock_prompt.hpp).
  Status take_prompt(EngineContext& from);

  MemoryUsage memory_usage() const;

  /// mikv::add_maxima() of a context of mikv.
  Status add_maxima(ChannelMaxima& maxima) const;
  /// Errors: not a context of mikv; its prompt is compressed already.
  Result<Checkpoint> checkpoint() const;
  /// Returns to the checkpoint's prompt, uncompressed, under another spec.
  Status restore(const Checkpoint& checkpoint, const Spec& spec);

 private:
  friend class Sampler;
  EngineContext(const Model& model, llama_context* context, KvChoice kv, EngineOptions options);
  Status step(std::span<const Token> tokens);
  MemoryUsage stock_usage() const;

  const Model& model_;
  llama_context* context_;
  KvChoice kv_;
  EngineOptions options_;
  uint32_t n_past_ = 0;
};

/// llama.cpp's usual chain: top-k 40, top-p 0.95, min-p 0.05, temperature; greedy at temperature 0.
class Sampler {
 public:
  Sampler(float temperature, uint32_t seed);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;
  Token sample(EngineContext& context);

 private:
  llama_sampler* chain_;
};

}  // namespace mikv::llama
