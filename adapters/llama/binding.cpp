#include "binding.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#include "report.hpp"
#include "rope_probe.hpp"
#include "state_stream.hpp"

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

}  // namespace

int cache_layer(const ggml_tensor* t) {
  const ggml_tensor* root = root_of(t);
  if (!root) return -1;
  const char* name = root->name;
  if (std::strncmp(name, "cache_k_l", 9) != 0 && std::strncmp(name, "cache_v_l", 9) != 0) return -1;
  return std::atoi(name + 9);
}

AttentionParams attention_params(const ggml_tensor* attention) {
  AttentionParams params;
  const size_t offset = attention->op == GGML_OP_FLASH_ATTN_EXT ? 0 : kSavedParams;
  std::memcpy(&params, reinterpret_cast<const char*>(attention->op_params) + offset, sizeof params);
  return params;
}

bool is_key_cache(const ggml_tensor* t) { return std::strncmp(root_of(t)->name, "cache_k_l", 9) == 0; }

Binding::Binding(const Spec& spec, const llama_model* model, const llama_context_params& params,
                 AttentionBy attention_by)
    : spec_(spec),
      sequences_(params.n_seq_max, params.kv_unified),
      rows_in_order_(!llama_model_is_hybrid(model)),
      workspace_(uint32_t(std::max(
                     {params.n_threads, params.n_threads_batch, int32_t(std::thread::hardware_concurrency()), 1})),
                 sequences_.n_sequences()),
      engine_attends_(attention_by == AttentionBy::engine && spec.uncompressed()),
      n_ubatch_(params.n_ubatch) {
  for (const float value :
       {params.rope_freq_base, params.rope_freq_scale, params.yarn_ext_factor, params.yarn_attn_factor,
        params.yarn_beta_fast, params.yarn_beta_slow, float(params.yarn_orig_ctx), float(params.rope_scaling_type)}) {
    parameters_ += std::to_string(value) + " ";
  }
}

Layer* Binding::find_layer(int index) {
  const auto found = layers_.find(index);
  return found == layers_.end() ? nullptr : &found->second;
}

void Binding::learn_rope(Layer& layer, const ggml_tensor* store_k) {
  if (layer.rope_known || !spec_.mixed()) return;
  layer.rope_known = true;
  if (const Status status = layer.cache->set_rope(rope_of(store_k->src[0])); !status) fail(status.error());
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
  layer.k_tensor = root_of(k);
  layer.v_tensor = root_of(v);
  layer.cells_per_stream = uint32_t(layer.k_tensor->ne[1]);
  auto cache = LayerCache::create(shape, spec_, layer.cells_per_stream);
  if (!cache) {
    fail(where + cache.error());
    layers_.erase(index);
    return nullptr;
  }
  layer.cache = std::move(cache).value();
  const AttentionParams params = attention_params(attention);
  if (params.max_bias > 0.0f) layer.slopes = alibi_slopes(params.max_bias, shape.n_heads);
  for (const OpKind kind : {OpKind::store_k, OpKind::store_v, OpKind::attend, OpKind::shift})
    layer.ops[int(kind)] = {this, index, kind};
  return &layer;
}

int32_t Binding::begin_step(const BatchRecord& batch) {
  {
    const std::lock_guard lock(failure_mutex_);
    failure_ = {};  // each step fails for itself: a server goes on with the next request
  }
  saved_state_ = {};
  Status status = forget_freed_cells();
  if (status) {
    auto plan = StepPlan::make(batch, sequences_, rows_in_order_);
    status = plan ? Status() : Error{plan.error()};
    if (plan) plan_ = std::move(plan).value();
  }
  if (status) {
    move_on(kSegmentTokens);
    if (spec_.prefill == Prefill::streaming)
      plan_.let_wait([this](llama_seq_id sequence) { return n_streamed(sequence); });
    commit_idle();
    for (const StepPlan::Run& run : plan_.runs()) {
      const bool at_once = commits(run);  // drafts are not, but what was staged before them is
      if (run.generates || at_once) share_bits(run.segment, commit_from(run), at_once ? std::min(run.n, n_ubatch_) : 0);
    }
  }
  for (auto& [index, layer] : layers_) layer.first_row = layer.next_row = 0;
  int32_t refused = -3;
  if (status) {
    refused = make_room();
    for (const StepPlan::Run& run : plan_.runs()) {
      if (run.may_end) may_have_ended_.push_back(run.segment);
    }
    if (refused == 0) return 0;
  } else {
    fail(status.error());
  }
  end_step(refused);
  return refused;
}

void Binding::commit_idle() {
  const auto runs = plan_.runs();
  for (const SegmentId segment : may_have_ended_) {
    if (std::any_of(runs.begin(), runs.end(), [&](const StepPlan::Run& run) { return run.segment == segment; }))
      continue;
    share_bits(segment, kFirstTokens);
    for (auto& [index, layer] : layers_) {
      if (const Status status = layer.cache->commit(segment, kFirstTokens); !status) fail(status.error());
      layer.cache->trim(segment);
    }
  }
  may_have_ended_.clear();
}

void Binding::share_bits(SegmentId segment, uint32_t from, uint32_t n_to_come) {
  std::vector<LayerCache*> caches;
  for (auto& [index, layer] : layers_) {
    if (layer.cache->n_staged(segment) && commits_from(from, *layer.cache, segment, n_to_come))
      caches.push_back(layer.cache.get());
  }
  if (const Status status = LayerCache::share_bits(caches, segment, workspace_.max_threads()); !status)
    fail(status.error());
}

bool Binding::end_step(int32_t status) {
  const Status failed = failure();
  if (status != 0 || !failed) cells_freed();  // llama.cpp takes the batch's cells back, or its caller will
  if (!failed && prints_failures_) std::fprintf(stderr, "mikv: %s\n", failed.error().c_str());
  n_steps_ += status == 0 && failed.ok();
  if (!report_file_.empty()) write_report(report_file_, false);
  return failed.ok();
}

void Binding::forget_sequence(llama_seq_id sequence) {
  for (llama_seq_id s = 0; sequences_.valid(s); ++s) {
    if (s == sequence || sequence < 0) sequences_.forget(s);
  }
}

void Binding::copy_sequence(llama_seq_id from, llama_seq_id to) {
  if (!sequences_.valid(from) || !sequences_.valid(to) || from == to) return;
  if (const Status status = forget_freed_cells(); !status) return fail(status.error());
  if (sequences_.unified()) return sequences_.share(from, to);
  // Streams are copied whole.
  for (const SegmentId segment : std::vector<SegmentId>(sequences_.seen_by(to).begin(), sequences_.seen_by(to).end())) {
    for (auto& [index, layer] : layers_) layer.cache->retain(segment, {});
  }
  sequences_.drop_segments([&](SegmentId segment) { return is_empty(segment); });
  sequences_.forget(to);
  for (const SegmentId segment : sequences_.seen_by(from)) {
    const SegmentId copy = sequences_.new_segment(to, segment == sequences_.own(from));
    for (auto& [index, layer] : layers_) {
      if (const Status status = layer.cache->copy_segment(segment, copy); !status) fail(status.error());
    }
  }
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
  for (auto& [index, layer] : layers_) layer.cache->clear();
  sequences_.clear();
  cells_freed_ = false;
}

MemoryUsage Binding::memory_usage() const {
  MemoryUsage usage;
  for (const auto& [index, layer] : layers_) usage += layer.cache->memory_usage();
  return usage;
}

void Binding::move_on(uint32_t n_tokens) {
  const auto full = [&](SegmentId segment) {
    return std::any_of(layers_.begin(), layers_.end(),
                       [&](const auto& entry) { return is_full(*entry.second.cache, segment, n_tokens); });
  };
  for (const StepPlan::Move& move : plan_.move_on(sequences_, full)) {
    // Where there is no memory for it, the new segment begins as that of any other text does.
    for (auto& [index, layer] : layers_) {
      (void)layer.cache->continue_segment(move.from, move.to);
      layer.cache->trim(move.from);
    }
  }
}

uint32_t Binding::n_streamed(llama_seq_id sequence) const {
  uint64_t n_compressed = 0, n_cells = 0;  // layers with a sliding window have fewer
  for (const auto& [index, layer] : layers_) {
    uint64_t of_layer = 0;
    for (const SegmentId segment : sequences_.seen_by(sequence))
      of_layer += layer.cache->n_cells(segment) - layer.cache->n_staged(segment);
    n_compressed = std::max(n_compressed, of_layer);
    n_cells = std::max<uint64_t>(n_cells, layer.cells_per_stream);
  }
  return streamed_tokens(spec_, n_cells, n_compressed);
}

bool Binding::is_empty(SegmentId segment) const {
  return std::all_of(layers_.begin(), layers_.end(),
                     [&](const auto& entry) { return entry.second.cache->n_cells(segment) == 0; });
}

void Binding::forget_cells(const std::map<int, std::vector<StreamCell>>& cells) {
  for (const auto& [index, of_layer] : cells) {
    Layer* layer = find_layer(index);
    if (!layer) continue;
    std::map<uint32_t, std::vector<Cell>> by_stream;
    for (const StreamCell& cell : of_layer) by_stream[cell.stream].push_back(cell.cell);
    sequences_.for_each_segment(
        [&](SegmentId segment) { layer->cache->erase(segment, by_stream[sequences_.stream_of_segment(segment)]); });
  }
}

Status Binding::forget_freed_cells() {
  if (!cells_freed_) return {};
  const auto state = read_state(context_, kAllSequences, 0);
  if (!state) return Error{state.error()};
  for (auto& [index, layer] : layers_) {
    // By stream: bit c of word c / 64 is cell c.
    std::vector<std::vector<uint64_t>> live(sequences_.n_streams(),
                                            std::vector<uint64_t>((layer.cells_per_stream + 63) / 64));
    const auto found = state.value().cells.find(index);
    if (found != state.value().cells.end()) {
      for (const auto& [stream, cell] : found->second) live[stream][cell / 64] |= uint64_t{1} << (cell % 64);
    }
    sequences_.for_each_segment(
        [&](SegmentId segment) { layer.cache->retain(segment, live[sequences_.stream_of_segment(segment)]); });
  }
  sequences_.drop_segments([&](SegmentId segment) { return is_empty(segment); });
  cells_freed_ = false;
  return {};
}

}  // namespace mikv::llama
