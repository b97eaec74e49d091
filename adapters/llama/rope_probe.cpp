#include "rope_probe.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace mikv::llama {
namespace {

constexpr int kChannelsParameter = 1, kModeParameter = 2, kOffsetParameter = 15;  // of op_params (ggml_rope_impl)

const ggml_tensor* rope_node(const ggml_tensor* t) {
  while (t && (t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_CONT)) t = t->src[0];
  return t && t->op == GGML_OP_ROPE ? t : nullptr;
}

}  // namespace

// ggml turns the first channel of each pair at position 1, with the node's own parameters: frequency scaling and factors, YaRN and all.
Rope rope_of(const ggml_tensor* keys) {
  const ggml_tensor* node = rope_node(keys);
  if (!node || node->type != GGML_TYPE_F32) return {};
  int32_t parameters[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
  std::memcpy(parameters, node->op_params, sizeof parameters);
  const int mode = parameters[kModeParameter], n_channels = parameters[kChannelsParameter];
  if (parameters[kOffsetParameter] != 0 || n_channels < 2 || n_channels > node->ne[0] || (mode & GGML_ROPE_TYPE_VISION) == GGML_ROPE_TYPE_VISION) return {};
  Rope rope{std::vector<float>(size_t(n_channels) / 2), (mode & (GGML_ROPE_TYPE_NEOX | GGML_ROPE_TYPE_MROPE)) == 0};

  std::vector<char> memory((size_t{1} << 16) + 64 * size_t(node->ne[0]));
  ggml_context* context = ggml_init({memory.size(), memory.data(), false});
  ggml_tensor* key = ggml_new_tensor_1d(context, GGML_TYPE_F32, node->ne[0]);
  ggml_tensor* positions = ggml_new_tensor_1d(context, GGML_TYPE_I32, mode & GGML_ROPE_TYPE_MROPE ? 4 : 1);
  float* channels = ggml_get_data_f32(key);
  std::fill_n(channels, node->ne[0], 0.0f);
  for (uint32_t i = 0; i < rope.angles.size(); ++i) channels[rope.channels(i)[0]] = 1.0f;
  for (int64_t i = 0; i < positions->ne[0]; ++i) static_cast<int32_t*>(positions->data)[i] = 1;
  ggml_tensor* turned = ggml_dup_tensor(context, key);
  turned->op = GGML_OP_ROPE;
  std::memcpy(turned->op_params, parameters, sizeof parameters);
  turned->src[0] = key;
  turned->src[1] = positions;
  if (const ggml_tensor* factors = node->src[2]) {
    turned->src[2] = ggml_dup_tensor(context, factors);
    if (factors->buffer) {
      ggml_backend_tensor_get(factors, turned->src[2]->data, 0, ggml_nbytes(factors));  // weights may be on another machine
    } else {
      std::memcpy(turned->src[2]->data, factors->data, ggml_nbytes(factors));
    }
  }
  ggml_cgraph* graph = ggml_new_graph_custom(context, 8, false);
  ggml_build_forward_expand(graph, turned);
  if (ggml_graph_compute_with_ctx(context, graph, 1) == GGML_STATUS_SUCCESS) {
    const float* result = ggml_get_data_f32(turned);
    for (uint32_t i = 0; i < rope.angles.size(); ++i) rope.angles[i] = std::atan2(result[rope.channels(i)[1]], result[rope.channels(i)[0]]);
  } else {
    rope = {};
  }
  ggml_free(context);
  return rope;
}

}  // namespace mikv::llama
