// ggml's RoPE by itself, on keys of our own, with the parameters of a node of llama.cpp's graph: frequency scaling and
// factors, YaRN and every kind of RoPE are right by construction.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"

namespace mikv::llama {

/// GGML_OP_ROPE's op_params.
using RopeParams = std::array<int32_t, GGML_MAX_OP_PARAMS / sizeof(int32_t)>;
inline constexpr size_t kRopeChannels = 1, kRopeMode = 2, kRopeOffset = 15;  // places in it (ggml_rope_impl)
RopeParams rope_params(const ggml_tensor* node);

class RopeOperator {
 public:
  /// n_keys keys of `dim` channels. factors: the node's third source, or null; copied from any backend.
  RopeOperator(const RopeParams& params, int64_t dim, const ggml_tensor* factors, int64_t n_keys);

  std::span<float> keys();         ///< [n_keys][dim]
  std::span<int32_t> positions();  ///< [n_keys], or [4][n_keys] of multimodal kinds
  /// Returns the keys, each rotated to its position: [n_keys][dim], valid until the next call. Empty if ggml fails.
  std::span<const float> turn();

 private:
  struct Free {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, Free> context_;
  ggml_tensor *keys_ = nullptr, *positions_ = nullptr, *turned_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  std::vector<uint8_t> work_;
  ggml_cplan plan_{};
};

}  // namespace mikv::llama
