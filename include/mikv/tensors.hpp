// Attention on tensors as engines have them: three types, any strides, one call for a layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "mikv/context.hpp"

namespace mikv {

enum class TensorType { f32, f16, bf16 };

/// [sequences][tokens][heads][channels] in the engine's memory; channels are contiguous. Strides are in elements.
struct Tensor {
  void* data = nullptr;  ///< of q, k and v only read
  TensorType type = TensorType::f32;
  size_t sequence_stride = 0;
  size_t token_stride = 0;
  size_t head_stride = 0;
};

/// The next tokens of a step in one layer, equally many of each sequence.
struct TensorCall {
  std::span<const SequenceId> sequences;  ///< in the order of the batch
  uint32_t n_tokens = 0;                  ///< of each
  Tensor q, k, v;                         ///< RoPE applied
  Tensor out;                             ///< written
  float scale = 1.0f;                     ///< of the logits, usually 1 / sqrt(head_dim_k)
  float softcap = 0.0f;                   ///< as AttendArgs has it
  const float* sinks = nullptr;           ///< the same
};

/// Context::store() and attend_all() of these tokens. Threads: one, as both. Errors: theirs; a key or value that is not
/// finite, and nothing is kept then; unsupported: the context is unified, or the engine keeps its cells.
MIKV_API Status attend_tensors(Context& context, int layer, const TensorCall& call);

}  // namespace mikv
