// Contexts: the same few operations over mikv's cache and over stock llama.cpp.
#include <algorithm>

#include "engine/engine.hpp"
#include "engine/llama_log.hpp"
#include "kv_context.hpp"
#include "llama.h"
#include "state/stock_prompt.hpp"

namespace mikv::llama {
namespace {

llama_context_params context_params(const KvChoice& kv, const EngineOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.n_ctx;
  params.n_batch = params.n_ubatch = std::min(options.n_ubatch, options.n_ctx);
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = options.n_threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.offload_kqv = false;
  params.swa_full = options.rewindable;
  params.no_perf = true;
  if (kv.stock()) params.type_k = params.type_v = ggml_type(kv.stock_type);
  return params;
}

Error no_context(const KvChoice& kv, const EngineOptions& options) {
  return Error{ErrorCode::engine, "llama.cpp could not create a context of " + std::to_string(options.n_ctx) +
                                      " tokens for " + kv.name + ": " + first_llama_error() + "; try a smaller -c"};
}

bool ask_to_stop(void* options) { return static_cast<EngineOptions*>(options)->should_stop(); }

/// Bytes of a block of `type` that are scales and minima rather than codes.
uint64_t scale_bytes(ggml_type type) {
  switch (type) {
    case GGML_TYPE_Q8_0:
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_IQ4_NL: return 2;
    case GGML_TYPE_Q5_1:
    case GGML_TYPE_Q4_1: return 4;
    default: return 0;
  }
}

}  // namespace

EngineContext::EngineContext(const Model& model, llama_context* context, KvChoice kv, EngineOptions options)
    : model_(model), context_(context), kv_(std::move(kv)), options_(std::move(options)) {
  if (options_.should_stop) llama_set_abort_callback(context_, ask_to_stop, &options_);
}

EngineContext::~EngineContext() { llama_free(context_); }

Result<std::unique_ptr<EngineContext>> EngineContext::create(const Model& model, const KvChoice& kv,
                                                             const EngineOptions& options) {
  const llama_context_params params = context_params(kv, options);
  llama_context* context = nullptr;
  forget_llama_errors();
  if (kv.stock()) {
    context = llama_init_from_model(model.get(), params);
    if (!context) return no_context(kv, options);
  } else {
    auto created = init_context(model.get(), params, *kv.spec);
    if (!created) return created.error().code == ErrorCode::engine ? no_context(kv, options) : created.error();
    context = created.value();
    if (cache_of(context)->layers().empty()) {
      llama_free(context);
      return Error{
          "this model keeps no KV cache in attention layers (recurrent or embedding model), so mikv has nothing to "
          "store; use --kv llama:f16"};
    }
  }
  return std::unique_ptr<EngineContext>(new EngineContext(model, context, kv, options));
}

Status EngineContext::step(std::span<const Token> tokens) {
  // llama.cpp takes the tokens as non-const but only reads them.
  auto batch = llama_batch_get_one(const_cast<Token*>(tokens.data()), int32_t(tokens.size()));
  const int32_t code = llama_decode(context_, batch);
  if (code == 2) return Error{"stopped"};
  if (code != 0)
    return Error{"llama.cpp failed on a step of " + std::to_string(tokens.size()) + " tokens (code " +
                 std::to_string(code) + "); --verbose shows its log"};
  if (!kv_.stock()) {
    if (Status cache = cache_of(context_)->failure(); !cache.ok()) return cache;
  }
  n_past_ += uint32_t(tokens.size());
  return {};
}

Status EngineContext::prefill(std::span<const Token> tokens, const std::function<void(size_t)>& progress) {
  if (kv_.takes_prompt)
    return Error{kv_.name + " stores a prompt that another cache has read, which only eval does; use it there"};
  if (tokens.size() > n_ctx() - n_past_) {
    return Error{"the prompt has " + std::to_string(n_past_ + tokens.size()) + " tokens, but the context holds " +
                 std::to_string(n_ctx()) + "; raise it with -c"};
  }
  const size_t chunk_max = std::min(options_.n_ubatch, n_ctx());
  for (size_t done = 0; done < tokens.size();) {
    if (options_.should_stop && options_.should_stop()) return Error{"stopped"};
    size_t n = std::min(chunk_max, tokens.size() - done);
    // A step of a single token counts as generation and would end the prompt, so none is left over.
    if (tokens.size() - done - n == 1 && n > 2) --n;
    if (Status s = step(tokens.subspan(done, n)); !s.ok()) return s;
    done += n;
    if (progress) progress(done);
  }
  return {};
}

Status EngineContext::decode(Token token) {
  if (n_past_ >= n_ctx())
    return Error{"the context is full (" + std::to_string(n_ctx()) + " tokens); raise it with -c"};
  return step({&token, 1});
}

std::span<const float> EngineContext::logits() const { return {llama_get_logits_ith(context_, -1), model_.n_vocab()}; }

Status EngineContext::end_prompt() { return kv_.stock() ? Status{} : cache_of(context_)->compress(); }

Status EngineContext::truncate(uint32_t n) {
  if (n >= n_past_) return {};
  if (!llama_memory_seq_rm(llama_get_memory(context_), 0, int32_t(n), -1)) {
    return Error{"this model's cache cannot be cut back to " + std::to_string(n) + " tokens"};
  }
  n_past_ = n;
  return {};
}

void EngineContext::reset() {
  llama_memory_clear(llama_get_memory(context_), false);
  if (!kv_.stock()) cache_of(context_)->clear();
  n_past_ = 0;
}

Status EngineContext::take_prompt(EngineContext& from) {
  reset();
  if (from.n_past_ > n_ctx()) return Error{"the prompt is longer than the context that is to take it"};
  const Status copied = copy_prompt(from.context_, context_, ggml_type(kv_.stock_type));
  if (copied) n_past_ = from.n_past_;
  return copied;
}

MemoryUsage EngineContext::memory_usage() const {
  return kv_.stock() ? stock_usage() : cache_of(context_)->memory_usage();
}

/// What the stored tokens take in llama.cpp's cache type, in the terms of ours: 16-bit floats count as staged, codes as
/// hi.
MemoryUsage EngineContext::stock_usage() const {
  const ggml_type type = ggml_type(kv_.stock_type);
  const uint64_t block = uint64_t(ggml_blck_size(type)), block_bytes = ggml_type_size(type);
  MemoryUsage usage;
  for (const LayerShape& layer : model_.info().layers) {
    const uint64_t elements = uint64_t(n_past_) * layer.n_kv_heads * (layer.head_dim_k + layer.head_dim_v);
    usage.n_elements += elements;
    (block == 1 ? usage.staged : usage.hi) += elements / block * (block_bytes - scale_bytes(type));
    usage.scales += elements / block * scale_bytes(type);
    (block == 1 ? usage.n_staged_tokens : usage.n_hi_tokens) += uint64_t(n_past_) * layer.n_kv_heads;
  }
  return usage;
}

Status EngineContext::add_maxima(ChannelMaxima& maxima) const { return mikv::add_maxima(*cache_of(context_), maxima); }

Result<Checkpoint> EngineContext::checkpoint() const {
  auto taken = cache_of(context_)->snapshot();
  if (!taken) return taken.error();
  return Checkpoint{taken.value(), n_past_};
}

Status EngineContext::restore(const Checkpoint& checkpoint, const Spec& spec) {
  if (Status cut = truncate(checkpoint.n_past); !cut.ok()) return cut;
  if (n_past_ != checkpoint.n_past)
    return Error{"a checkpoint can only be restored in a context that holds its prompt"};
  return cache_of(context_)->restore(checkpoint.snapshot, spec);
}

Sampler::Sampler(float temperature, uint32_t seed)
    : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
  if (temperature <= 0.0f) {
    llama_sampler_chain_add(chain_, llama_sampler_init_greedy());
    return;
  }
  llama_sampler_chain_add(chain_, llama_sampler_init_top_k(40));
  llama_sampler_chain_add(chain_, llama_sampler_init_top_p(0.95f, 1));
  llama_sampler_chain_add(chain_, llama_sampler_init_min_p(0.05f, 1));
  llama_sampler_chain_add(chain_, llama_sampler_init_temp(temperature));
  llama_sampler_chain_add(chain_, llama_sampler_init_dist(seed));
}

Sampler::~Sampler() { llama_sampler_free(chain_); }

Token Sampler::sample(EngineContext& context) { return llama_sampler_sample(chain_, context.context_, -1); }

}  // namespace mikv::llama
