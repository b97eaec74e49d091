#include "graph/rope_operator.hpp"

#include <cstring>

#include "ggml-backend.h"

namespace mikv::llama {
namespace {

constexpr size_t kGraphNodes = 8, kTensors = 4;

std::span<float> floats(const ggml_tensor* t) { return {ggml_get_data_f32(t), size_t(ggml_nelements(t))}; }

}  // namespace

RopeParams rope_params(const ggml_tensor* node) {
  RopeParams params;
  std::memcpy(params.data(), node->op_params, sizeof params);
  return params;
}

RopeOperator::RopeOperator(const RopeParams& params, int64_t dim, const ggml_tensor* factors, int64_t n_keys) {
  const int64_t n_positions = params[kRopeMode] & GGML_ROPE_TYPE_MROPE ? 4 * n_keys : n_keys;
  const size_t data = sizeof(float) * size_t(2 * n_keys * dim + n_positions) + (factors ? ggml_nbytes(factors) : 0);
  const size_t padding = kTensors * GGML_MEM_ALIGN;
  context_.reset(
      ggml_init({data + padding + kTensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(kGraphNodes, false),
                 nullptr, false}));
  keys_ = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, dim, 1, n_keys);
  positions_ = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, n_positions);
  turned_ = ggml_dup_tensor(context_.get(), keys_);
  turned_->op = GGML_OP_ROPE;
  std::memcpy(turned_->op_params, params.data(), sizeof params);
  turned_->src[0] = keys_;
  turned_->src[1] = positions_;
  if (factors) {
    turned_->src[2] = ggml_dup_tensor(context_.get(), factors);
    if (factors->buffer) {
      ggml_backend_tensor_get(factors, turned_->src[2]->data, 0,
                              ggml_nbytes(factors));  // weights may be on another machine
    } else {
      std::memcpy(turned_->src[2]->data, factors->data, ggml_nbytes(factors));
    }
  }
  graph_ = ggml_new_graph_custom(context_.get(), kGraphNodes, false);
  ggml_build_forward_expand(graph_, turned_);
  plan_ = ggml_graph_plan(graph_, 1, nullptr);
  work_.resize(plan_.work_size);
  plan_.work_data = work_.data();
}

std::span<float> RopeOperator::keys() { return floats(keys_); }

std::span<int32_t> RopeOperator::positions() {
  return {static_cast<int32_t*>(positions_->data), size_t(ggml_nelements(positions_))};
}

std::span<const float> RopeOperator::turn() {
  if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS) return {};
  return floats(turned_);
}

}  // namespace mikv::llama
