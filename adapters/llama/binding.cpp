#include "binding.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <thread>

#include "graph/rope_probe.hpp"
#include "interpose/next_definition.hpp"
#include "interpose/punctuation.hpp"
#include "say.hpp"
#include "state/state_stream.hpp"

namespace mikv::llama {
namespace {

const ggml_tensor* root_of(const ggml_tensor* t) {
  while (t && t->view_src) t = t->view_src;
  return t;
}

// The slopes of ALiBi for a number of heads that need not be a power of two (arXiv 2108.12409, as in ggml).
std::vector<float> alibi_slopes(float max_bias, uint32_t n_heads) {
  const uint32_t power = 1u << uint32_t(std::log2(double(n_heads)));
  const float even = std::exp2(-max_bias / float(power)), odd = std::exp2(-max_bias / 2.0f / float(power));
  std::vector<float> slopes;
  for (uint32_t h = 0; h < n_heads; ++h) {
    slopes.push_back(h < power ? std::pow(even, float(h + 1)) : std::pow(odd, float(2 * (h - power) + 1)));
  }
  return slopes;
}

// What must be equal for stored keys and values to mean the same: the model's own figures and metadata, and those of
// the context's parameters that change how positions are encoded. The order is that of files written so far.
void identify(const llama_model* model, const llama_context_params& params, ContextOptions& options) {
  char text[256];
  llama_model_desc(model, text, sizeof text);
  options.model = text;
  std::string all = options.model;
  for (const float value :
       {params.rope_freq_base, params.rope_freq_scale, params.yarn_ext_factor, params.yarn_attn_factor,
        params.yarn_beta_fast, params.yarn_beta_slow, float(params.yarn_orig_ctx), float(params.rope_scaling_type)}) {
    char digits[64];  // not by printf, whose decimal point depends on the program's locale
    all += std::string(digits, std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed, 6).ptr);
    all += " ";
  }
  std::vector<char> value(1 << 16);
  for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
    // Called by name: the preloaded library can only bind calls late, not addresses.
    if (llama_model_meta_key_by_index(model, i, value.data(), value.size()) >= 0)
      all += std::string(value.data()) + "=";
    if (llama_model_meta_val_str_by_index(model, i, value.data(), value.size()) >= 0)
      all += std::string(value.data()) + "\n";
  }
  for (const uint64_t n : {llama_model_size(model), llama_model_n_params(model)}) all += std::to_string(n) + "\n";
  options.fingerprint = XXH3_64bits(all.data(), all.size());
}

// What llama.cpp makes of the sizes that a program asks for: 0 stands for as much as the next larger one.
uint32_t effective_ubatch(const llama_model* model, const llama_context_params& params) {
  const uint32_t n_ctx = params.n_ctx ? params.n_ctx : uint32_t(llama_model_n_ctx_train(model));
  const bool causal = params.attention_type != LLAMA_ATTENTION_TYPE_NON_CAUSAL;
  const uint32_t n_batch = causal ? std::min(n_ctx, params.n_batch) : params.n_batch;
  return std::clamp(params.n_ubatch ? params.n_ubatch : params.n_batch, 1u, std::max(1u, n_batch));
}

uint32_t most_threads(const llama_context_params& params) {
  return uint32_t(
      std::max({params.n_threads, params.n_threads_batch, int32_t(std::thread::hardware_concurrency()), 1}));
}

}  // namespace

int cache_layer(const ggml_tensor* t) {
  const ggml_tensor* root = root_of(t);
  if (!root) return -1;
  const char* name = root->name;
  if (std::strncmp(name, "cache_k_l", 9) != 0 && std::strncmp(name, "cache_v_l", 9) != 0) return -1;
  return std::atoi(name + 9);
}

bool is_key_cache(const ggml_tensor* t) { return std::strncmp(root_of(t)->name, "cache_k_l", 9) == 0; }

AttentionParams attention_params(const ggml_tensor* attention) {
  AttentionParams params;
  const size_t offset = attention->op == GGML_OP_FLASH_ATTN_EXT ? 0 : kSavedParams;
  std::memcpy(&params, reinterpret_cast<const char*>(attention->op_params) + offset, sizeof params);
  return params;
}

Result<std::unique_ptr<Binding>> Binding::create(const Spec& spec, const llama_model* model,
                                                 const llama_context_params& params, AttentionBy attention_by,
                                                 std::shared_ptr<MemoryAccount> account) {
  std::unique_ptr<Binding> binding(new Binding);
  ContextOptions options;
  options.spec = spec;
  options.n_sequences = std::max(1u, params.n_seq_max);
  options.unified = params.kv_unified;
  options.n_ubatch = effective_ubatch(model, params);
  options.n_threads = most_threads(params);
  options.tokens_in_order = !llama_model_is_hybrid(model);
  options.cells = binding.get();
  options.account = std::move(account);
  options.log = say;
  identify(model, params, options);
  auto cache = Context::create(std::move(options));
  if (!cache) return cache.error();
  binding->cache_ = std::move(cache).value();
  binding->embeds_ = params.embeddings;
  if (spec.keeps_punctuation()) binding->punctuation_ = punctuation_of(model);
  binding->engine_attends_ = attention_by == AttentionBy::engine && spec.uncompressed();
  return binding;
}

LayerTensors* Binding::find_layer(int index) {
  const auto found = layers_.find(index);
  return found == layers_.end() ? nullptr : &found->second;
}

void Binding::learn_rope(int index, const ggml_tensor* store_k) {
  LayerTensors& layer = layers_.at(index);
  if (layer.rope_known || !cache_->spec().mixed()) return;
  layer.rope_known = true;
  if (const Status status = cache_->set_rope(index, rope_of(store_k->src[0])); !status) cache_->fail(status.error());
}

LayerTensors* Binding::layer_of_attention(const ggml_tensor* attention) {
  const ggml_tensor *q = attention->src[0], *k = attention->src[1], *v = attention->src[2];
  const int index = cache_layer(k);
  const std::string where = "layer " + std::to_string(index) + ": ";
  if (cache_layer(v) != index || is_key_cache(v)) {
    fail(where + "values are not kept apart from keys (multi-head latent attention), which mikv does not support");
    return nullptr;
  }
  if (v->ne[2] != k->ne[2]) {
    fail(where + "keys and values have different numbers of heads, which mikv does not support");
    return nullptr;
  }
  const LayerShape shape{uint32_t(q->ne[2]), uint32_t(k->ne[2]), uint32_t(k->ne[0]), uint32_t(v->ne[0])};
  const uint32_t n_cells = uint32_t(root_of(k)->ne[1]);
  if (const Status status = cache_->add_layer(index, shape, n_cells); !status) {
    cache_->fail(status.error());
    return nullptr;
  }
  const auto [entry, is_new] = layers_.try_emplace(index);
  LayerTensors& layer = entry->second;
  if (!is_new) return &layer;
  layer.k = root_of(k);
  layer.v = root_of(v);
  layer.cells_per_stream = n_cells;
  const AttentionParams params = attention_params(attention);
  if (params.max_bias > 0.0f) layer.slopes = alibi_slopes(params.max_bias, shape.n_heads);
  for (const OpKind kind : {OpKind::store_k, OpKind::store_v, OpKind::attend, OpKind::shift}) {
    layer.ops[int(kind)] = {this, index, kind};
  }
  return &layer;
}

// ---------------------------------------------------------------- steps

// Codes of llama_decode: a cache that is full, upon which programs free what they can and try less, and a failure.
constexpr int32_t kFull = 1, kFailed = -3;

namespace {

// All tokens of a text to embed want outputs, and nobody goes on with it: it is a prompt like any other.
void ask_for_last_output_only(Batch& batch) {
  std::map<SequenceId, Batch::Token*> last;
  for (Batch::Token& token : batch.tokens) {
    const auto [before, is_new] = last.try_emplace(token.sequence, &token);
    if (is_new) continue;
    before->second->output = false;
    before->second = &token;
  }
}

}  // namespace

int32_t Binding::begin_step(BatchRecord record) {
  Batch& batch = record.batch;
  saved_state_ = {};
  for (size_t i = 0; !punctuation_.empty() && i < record.ids.size(); ++i) {
    const auto id = size_t(record.ids[i]);  // of an embedding: beyond all
    batch.tokens[i].punctuation = id < punctuation_.size() && punctuation_[id];
  }
  if (embeds_) ask_for_last_output_only(batch);
  before_.clear();
  const auto remember = [&](SequenceId sequence) {
    if (std::ranges::find(before_, sequence, &std::pair<llama_seq_id, llama_pos>::first) != before_.end()) return;
    before_.emplace_back(sequence, llama_memory_seq_pos_max(llama_get_memory(context_), sequence));
  };
  for (const Batch::Token& token : batch.tokens) remember(token.sequence);
  for (const Batch::Shared& shared : batch.shared) remember(shared.sequence);
  const Status status = cache_->begin_step(batch);
  if (status) return 0;
  const bool full = status.code() == ErrorCode::over_budget;
  if (!full) note(status);  // the budget says it itself
  note_figures();
  return full ? kFull : kFailed;
}

bool Binding::end_step(int32_t status) {
  const Status failed = cache_->end_step(status == 0);
  note(failed);
  if (!failed && status == 0) take_back();
  if (report_) report_->note_step(*cache_);
  return failed.ok();
}

void Binding::take_back() {
  for (const auto& [sequence, position] : before_) {
    if (MIKV_NEXT(llama_memory_seq_rm)(llama_get_memory(context_), sequence, position + 1, -1)) continue;
    cache_->invalidate(sequence, Error{ErrorCode::engine, "the tokens of a step that failed could not be removed"});
  }
}

// A program that measures probabilities (perplexity) is told what it has measured: a short text is read exactly,
// whatever the cache is.
void Binding::say_what_was_measured() const {
  const Figures figures = cache_->figures();
  if (!prints_failures_ || cache_->spec().uncompressed() || figures.n_measured_seen == 0) return;
  const unsigned percent = unsigned(100 * figures.n_measured_compressed / figures.n_measured_seen);
  const char* of_full = ": this is the full cache's figure; measure texts of more than 1,024 tokens (-c 4096)";
  say("of what " + std::to_string(figures.n_measured) + " measured tokens attended to, " + std::to_string(percent) +
      " % was compressed" + (percent ? "" : of_full));
}

void Binding::note(const Status& status) const {
  if (!status && prints_failures_) say(status.message());
}

// ---------------------------------------------------------------- llama.cpp's table of cells

Result<CellsByLayer> Binding::live_cells() {
  auto state = read_state(context_, kAllSequences, 0);
  if (!state) return state.error();
  return std::move(state).value().cells;
}

namespace {
llama_state_seq_flags flags_of(bool partial) { return partial ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : 0; }
}  // namespace

Result<EngineState> Binding::save(SequenceId sequence, bool partial) {
  return read_state(context_, sequence, flags_of(partial));
}

Result<CellsByLayer> Binding::load(SequenceId sequence, bool partial, const EngineState& state) {
  return write_state(context_, sequence, flags_of(partial), state);
}

void Binding::drop(SequenceId sequence) {
  MIKV_NEXT(llama_memory_seq_rm)(llama_get_memory(context_), sequence, -1, -1);
}

}  // namespace mikv::llama
