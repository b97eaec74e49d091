#include "graph/rope_probe.hpp"

#include <algorithm>
#include <cmath>

#include "graph/rope_operator.hpp"

namespace mikv::llama {
namespace {

const ggml_tensor* rope_node(const ggml_tensor* t) {
  while (t && (t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_CONT)) t = t->src[0];
  return t && t->op == GGML_OP_ROPE ? t : nullptr;
}

}  // namespace

// ggml turns the first channel of each pair at position 1.
Rope rope_of(const ggml_tensor* keys) {
  const ggml_tensor* node = rope_node(keys);
  if (!node || node->type != GGML_TYPE_F32) return {};
  const RopeParams params = rope_params(node);
  const int mode = params[kRopeMode], n_channels = params[kRopeChannels];
  if (params[kRopeOffset] != 0 || n_channels < 2 || n_channels > node->ne[0] ||
      (mode & GGML_ROPE_TYPE_VISION) == GGML_ROPE_TYPE_VISION)
    return {};
  // A model without weights, as llama.cpp loads it to measure what fits (--fit): its contexts compute nothing.
  if (node->src[2] && !node->src[2]->data) return {};
  Rope rope{std::vector<float>(size_t(n_channels) / 2), (mode & (GGML_ROPE_TYPE_NEOX | GGML_ROPE_TYPE_MROPE)) == 0};

  RopeOperator at_1(params, node->ne[0], node->src[2], 1);
  std::ranges::fill(at_1.keys(), 0.0f);
  for (uint32_t i = 0; i < rope.angles.size(); ++i) at_1.keys()[rope.channels(i)[0]] = 1.0f;
  std::ranges::fill(at_1.positions(), 1);
  const std::span<const float> turned = at_1.turn();
  if (turned.empty()) return {};
  for (uint32_t i = 0; i < rope.angles.size(); ++i)
    rope.angles[i] = std::atan2(turned[rope.channels(i)[1]], turned[rope.channels(i)[0]]);
  return rope;
}

}  // namespace mikv::llama
