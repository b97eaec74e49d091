// What the nodes do that took the place of llama.cpp's own (graph_rewrite.cpp): they store K and V of a batch, attend,
// and rotate keys to other positions.
#include <algorithm>

#include "binding.hpp"

namespace mikv::llama {
namespace {

// Keys that RotateKeys hands over at once.
constexpr int64_t kKeysAtOnce = 16;

int64_t index_at(const ggml_tensor* indices, int64_t i) {
  const char* at = static_cast<const char*>(indices->data) + i * int64_t(indices->nb[0]);
  if (indices->type == GGML_TYPE_I32) return *reinterpret_cast<const int32_t*>(at);
  return *reinterpret_cast<const int64_t*>(at);
}

}  // namespace

void Binding::store(LayerTensors& layer, const OpData& op, const ggml_tensor* node) {
  const ggml_tensor *rows = node->src[0], *indices = node->src[1];
  places_.clear();
  for (int64_t row = 0; row < rows->ne[1]; ++row) {
    const int64_t index = index_at(indices, row);
    places_.push_back({uint32_t(index / layer.cells_per_stream), Cell(index % layer.cells_per_stream)});
  }
  const auto* data = static_cast<const float*>(rows->data);
  const size_t stride = rows->nb[1] / sizeof(float);
  const bool keys = op.kind == OpKind::store_k;
  const Status stored = cache_->store(op.layer, places_, keys ? data : nullptr, stride, keys ? nullptr : data, stride);
  if (stored && op.last_half && engine_attends_) copy_rows(op.layer, layer);
}

void Binding::copy_rows(int index, const LayerTensors& layer) {
  const LayerShape& shape = cache_->shape(index);
  const uint32_t n_streams = cache_->options().unified ? 1 : cache_->options().n_sequences;
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  for (uint32_t stream = 0; stream < n_streams; ++stream) {
    const size_t first = size_t{stream} * layer.cells_per_stream;
    cache_->read_f16(index, stream, row_copy_.k() + first * k_row, k_row, row_copy_.v() + first * v_row, v_row);
  }
}

void Binding::redirect(ggml_tensor* attention) {
  size_t k_bytes = 0, v_bytes = 0;
  for (const auto& [index, layer] : layers_) {
    k_bytes = std::max(k_bytes, ggml_nbytes(layer.k));
    v_bytes = std::max(v_bytes, ggml_nbytes(layer.v));
  }
  if (!row_copy_.reserve(k_bytes, v_bytes))
    return cache_->fail(no_addresses(k_bytes + v_bytes, "a copy of one layer's keys and values"));
  row_copy_.redirect(attention);
}

AttendArgs Binding::args_of(const LayerTensors& layer, ggml_tensor* node, int64_t stream) const {
  const ggml_tensor *q = node->src[0], *mask = node->src[3], *sinks = node->src[4];
  const AttentionParams params = attention_params(node);
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
  return args;
}

void Binding::attend(const LayerTensors& layer, const OpData& op, ggml_tensor* node, uint32_t thread,
                     uint32_t n_threads) {
  const ggml_tensor* k = node->src[1];
  const int64_t first_stream = k->nb[3] ? k->view_offs / int64_t(k->nb[3]) : 0;
  thread_local std::vector<AttendArgs> calls;
  calls.clear();
  for (int64_t stream = 0; stream < k->ne[3]; ++stream) {
    calls.push_back(args_of(layer, node, stream));
    calls.back().stream = uint32_t(first_stream + stream);
  }
  (void)cache_->attend(op.layer, calls, thread, n_threads);  // the context keeps the error
}

// llama.cpp rotates all keys of its cache tensors in place when positions shift, by a node per layer. That node rotates
// ours instead, some at a time, so that llama.cpp's tensors stay empty and a shift needs no memory.
void Binding::shift(const LayerTensors& layer, const OpData& op, const ggml_tensor* node, uint32_t thread,
                    uint32_t n_threads) {
  const size_t dim = cache_->shape(op.layer).head_dim_k;
  const size_t n_rotated = size_t(node->ne[0]);  // the first channels of each key
  const auto* shifts = static_cast<const int32_t*>(node->src[1]->data);
  RopeOperator rope(layer.shift_rope, int64_t(n_rotated), node->src[2], kKeysAtOnce);
  std::ranges::fill(rope.keys(), 0.0f);
  std::ranges::fill(rope.positions(), 0);
  const auto rotate = [&](uint32_t stream, std::span<const Cell> cells, std::span<float> keys) -> uint32_t {
    for (size_t i = 0; i < cells.size(); ++i) {
      rope.positions()[i] = shifts[size_t{stream} * layer.cells_per_stream + cells[i]];
      std::ranges::copy(keys.subspan(i * dim, n_rotated), rope.keys().subspan(i * n_rotated).begin());
    }
    const std::span<const float> turned = rope.turn();
    if (turned.empty()) {
      fail("llama.cpp could not rotate keys to other positions");
      return 0;
    }
    uint32_t changed = 0;
    for (size_t i = 0; i < cells.size(); ++i) {
      // A key that was not rotated keeps its codes: encoding it once more could only lose.
      const std::span<float> key = keys.subspan(i * dim, n_rotated);
      const std::span<const float> rotated = turned.subspan(i * n_rotated, n_rotated);
      if (std::ranges::equal(key, rotated)) continue;
      std::ranges::copy(rotated, key.begin());
      changed |= 1u << i;
    }
    return changed;
  };
  if (const Status status = cache_->rotate_keys(op.layer, rotate, thread, n_threads); !status) {
    cache_->fail(status.error());
  }
}

}  // namespace mikv::llama
