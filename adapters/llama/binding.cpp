#include "binding.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

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

AttentionParams read_params(const ggml_tensor* attention) {
  AttentionParams params;
  const size_t offset = attention->op == GGML_OP_FLASH_ATTN_EXT ? 0 : kSavedParams;
  std::memcpy(&params, reinterpret_cast<const char*>(attention->op_params) + offset, sizeof params);
  return params;
}

int64_t index_at(const ggml_tensor* indices, int64_t i) {
  const char* at = static_cast<const char*>(indices->data) + i * int64_t(indices->nb[0]);
  if (indices->type == GGML_TYPE_I32) return *reinterpret_cast<const int32_t*>(at);
  return *reinterpret_cast<const int64_t*>(at);
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

Binding::Binding(const Spec& spec, const llama_context_params& params)
    : spec_(spec),
      n_streams_(params.kv_unified ? 1 : std::max(1u, params.n_seq_max)),
      workspace_(uint32_t(std::max({params.n_threads, params.n_threads_batch,
                                    int32_t(std::thread::hardware_concurrency()), 1})),
                 n_streams_) {}

Layer* Binding::find_layer(int index) {
  const auto found = layers_.find(index);
  return found == layers_.end() ? nullptr : &found->second;
}

Layer* Binding::layer_of_attention(const ggml_tensor* attention) {
  const ggml_tensor *q = attention->src[0], *k = attention->src[1], *v = attention->src[2];
  const int index = cache_layer(k);
  const std::string where = "layer " + std::to_string(index) + ": ";
  if (cache_layer(v) != index || is_key_cache(v)) {
    fail(where + "values are not kept apart from keys (multi-head latent attention), which mikv does not support");
    return nullptr;
  }
  const LayerShape shape{uint32_t(q->ne[2]), uint32_t(k->ne[2]), uint32_t(k->ne[0]), uint32_t(v->ne[0])};
  if (v->ne[2] != k->ne[2]) {
    fail(where + "keys and values have different numbers of heads, which mikv does not support");
    return nullptr;
  }
  Layer& layer = layers_[index];
  if (layer.cache) {
    if (layer.cache->shape() == shape) return &layer;
    fail(where + "its attention changes shape between steps, which mikv does not support");
    return nullptr;
  }
  layer.cells_per_stream = uint32_t(root_of(k)->ne[1]);
  auto cache = LayerCache::create(shape, spec_, layer.cells_per_stream);
  if (!cache) {
    fail(where + cache.error());
    layers_.erase(index);
    return nullptr;
  }
  layer.cache = std::move(cache).value();
  const AttentionParams params = read_params(attention);
  if (params.max_bias > 0.0f) layer.slopes = alibi_slopes(params.max_bias, shape.n_heads);
  for (const OpKind kind : {OpKind::store_k, OpKind::store_v, OpKind::attend}) layer.ops[int(kind)] = {this, index, kind};
  return &layer;
}

void Binding::begin_step(const llama_batch& batch) {
  tokens_in_step_.assign(n_streams_, 0);
  std::map<llama_seq_id, uint32_t> tokens_of;
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const int32_t n_sequences = batch.n_seq_id && batch.seq_id ? batch.n_seq_id[i] : 1;
    for (int32_t s = 0; s < n_sequences; ++s) ++tokens_of[batch.n_seq_id && batch.seq_id ? batch.seq_id[i][s] : 0];
  }
  for (const auto& [sequence, n] : tokens_of) {
    // One stream for all sequences (a unified cache) generates only if all of them do.
    uint32_t& tokens = tokens_in_step_[n_streams_ == 1 || sequence < 0 ? 0 : uint32_t(sequence) % n_streams_];
    tokens = std::max(tokens, n);
  }
}

bool Binding::is_generation(uint32_t stream, int64_t tokens_in_graph) const {
  return stream < tokens_in_step_.size() ? tokens_in_step_[stream] <= 1 : tokens_in_graph == 1;
}

void Binding::store(Layer& layer, OpKind kind, const ggml_tensor* node) {
  const ggml_tensor *rows = node->src[0], *indices = node->src[1];
  const bool second_half = layer.half_stored && layer.stored_half != kind;
  layer.half_stored = !second_half;
  layer.stored_half = kind;

  // Tokens of one stream stand together: a run of rows goes to one frame.
  thread_local std::vector<Cell> cells;  // kept: a generation step allocates nothing
  for (int64_t begin = 0, end; begin < rows->ne[1]; begin = end) {
    const FrameId frame = FrameId(index_at(indices, begin) / layer.cells_per_stream);
    cells.clear();
    for (end = begin; end < rows->ne[1] && index_at(indices, end) / layer.cells_per_stream == frame; ++end) {
      cells.push_back(Cell(index_at(indices, end) % layer.cells_per_stream));
    }
    if (!second_half) {
      // A generated token ends the prompt before it: what is still staged is compressed first.
      Status status = is_generation(frame, end - begin) ? layer.cache->commit(frame) : Status();
      if (status) status = layer.cache->stage(frame, cells);
      if (!status) return fail(status.error());
    }
    const char* data = static_cast<const char*>(rows->data) + begin * int64_t(rows->nb[1]);
    const auto write = kind == OpKind::store_k ? &LayerCache::write_k : &LayerCache::write_v;
    (layer.cache.get()->*write)(frame, reinterpret_cast<const float*>(data), rows->nb[1] / sizeof(float), 0, 1);
  }
}

AttendArgs Binding::stream_args(const Layer& layer, ggml_tensor* node, int64_t stream, const FrameId& frame) const {
  const ggml_tensor *q = node->src[0], *mask = node->src[3], *sinks = node->src[4];
  const AttentionParams params = read_params(node);
  AttendArgs args;
  args.q = reinterpret_cast<const float*>(static_cast<const char*>(q->data) + stream * int64_t(q->nb[3]));
  args.q_token_stride = q->nb[1] / sizeof(float);
  args.q_head_stride = q->nb[2] / sizeof(float);
  args.out = reinterpret_cast<float*>(static_cast<char*>(node->data) + stream * int64_t(node->nb[3]));
  args.out_head_stride = node->nb[1] / sizeof(float);
  args.out_token_stride = node->nb[2] / sizeof(float);
  args.n_tokens = uint32_t(q->ne[1]);
  args.scale = params.scale;
  args.softcap = params.softcap;
  if (mask) {
    args.mask = {mask->type == GGML_TYPE_F16 ? Mask::Type::f16 : Mask::Type::f32,
                 static_cast<const char*>(mask->data) + (stream % mask->ne[3]) * int64_t(mask->nb[3]), mask->nb[1],
                 uint32_t(mask->ne[0])};
  }
  if (!layer.slopes.empty()) args.mask_slopes = layer.slopes.data();
  if (sinks) args.sinks = static_cast<const float*>(sinks->data);
  args.frames = {&frame, 1};
  args.commit = spec_.prefill == Prefill::streaming || is_generation(frame, q->ne[1]);
  return args;
}

void Binding::attend(Layer& layer, ggml_tensor* node, uint32_t thread, uint32_t n_threads) {
  const uint32_t usable = std::min(n_threads, workspace_.max_threads());
  if (thread >= usable) return;  // more threads than at creation (llama_set_n_threads): the rest have nothing to do
  const ggml_tensor* k = node->src[1];
  const int64_t n_streams = k->ne[3], first_stream = k->nb[3] ? int64_t(k->view_offs / k->nb[3]) : 0;
  thread_local std::vector<FrameId> frames;
  thread_local std::vector<AttendArgs> calls;
  frames.clear();
  calls.clear();
  for (int64_t s = 0; s < n_streams; ++s) frames.push_back(FrameId(first_stream + s));
  for (int64_t s = 0; s < n_streams; ++s) calls.push_back(stream_args(layer, node, s, frames[size_t(s)]));
  if (const Status status = layer.cache->attend(calls, workspace_, thread, usable); !status) fail(status.error());
}

void Binding::fail(const std::string& message) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_) failure_ = Error{message};
}

Status Binding::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

void Binding::clear() {
  for (auto& [index, layer] : layers_) {
    layer.cache->clear();
    layer.half_stored = false;
  }
}

}  // namespace mikv::llama
