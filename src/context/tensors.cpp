#include "mikv/tensors.hpp"

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "codec/cpu_clones.hpp"
#include "codec/fp16.hpp"
#include "context/context_impl.hpp"

namespace mikv {
namespace {

float bf16_to_f32(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

// Round to nearest even; NaN stays NaN.
uint16_t f32_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return uint16_t(x == x ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40u);
}

MIKV_FOR_EACH_CPU
void read_row(const void* row, TensorType type, size_t n, float* to) {
  const auto* halves = static_cast<const uint16_t*>(row);
  switch (type) {
    case TensorType::f32: std::copy_n(static_cast<const float*>(row), n, to); break;
    case TensorType::f16:
      for (size_t i = 0; i < n; ++i) to[i] = codec::f16_to_f32(halves[i]);
      break;
    case TensorType::bf16:
      for (size_t i = 0; i < n; ++i) to[i] = bf16_to_f32(halves[i]);
      break;
  }
}

MIKV_FOR_EACH_CPU
void write_row(const float* row, TensorType type, size_t n, void* to) {
  auto* halves = static_cast<uint16_t*>(to);
  switch (type) {
    case TensorType::f32: std::copy_n(row, n, static_cast<float*>(to)); break;
    case TensorType::f16:
      for (size_t i = 0; i < n; ++i) halves[i] = codec::f32_to_f16(row[i]);
      break;
    case TensorType::bf16:
      for (size_t i = 0; i < n; ++i) halves[i] = f32_to_bf16(row[i]);
      break;
  }
}

// NaN and infinity have all bits of the exponent.
MIKV_FOR_EACH_CPU
bool all_finite(const float* x, size_t n) {
  uint32_t not_finite = 0;
  for (size_t i = 0; i < n; ++i) not_finite |= uint32_t((std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u);
  return not_finite == 0;
}

// Calls visit(row of the tensor, place in a dense [rows][n_heads][n_channels]) for each head of each token.
template <typename Visit>
void for_each_row(const Tensor& tensor, const TensorCall& call, uint32_t n_heads, uint32_t n_channels, Visit visit) {
  const size_t bytes = tensor.type == TensorType::f32 ? sizeof(float) : sizeof(uint16_t);
  size_t place = 0;
  for (size_t s = 0; s < call.sequences.size(); ++s) {
    for (uint32_t t = 0; t < call.n_tokens; ++t) {
      for (uint32_t h = 0; h < n_heads; ++h, place += n_channels) {
        const size_t at = s * tensor.sequence_stride + t * tensor.token_stride + h * tensor.head_stride;
        visit(static_cast<uint8_t*>(tensor.data) + at * bytes, place);
      }
    }
  }
}

void read(const Tensor& tensor, const TensorCall& call, uint32_t n_heads, uint32_t n_channels, float* to) {
  for_each_row(tensor, call, n_heads, n_channels,
               [&](const void* row, size_t place) { read_row(row, tensor.type, n_channels, to + place); });
}

// Rows of floats that stand one behind the other, as a tensor.
Tensor dense(float* rows, const TensorCall& call, size_t row, size_t n_channels) {
  return {rows, TensorType::f32, call.n_tokens * row, row, n_channels};
}

Status check(const Context& context, const LayerShape& shape, const TensorCall& call) {
  if (context.options().unified || context.options().cells) {
    return Error{ErrorCode::unsupported, "attend_tensors: sequences need streams and cells of the context's own"};
  }
  for (const Tensor* tensor : {&call.q, &call.k, &call.v, &call.out}) {
    if (!tensor->data) return Error{"attend_tensors: q, k, v and out must not be null"};
    if (tensor->type != TensorType::f32 && tensor->type != TensorType::f16 && tensor->type != TensorType::bf16)
      return Error{"attend_tensors: a tensor's type is none of f32, f16 and bf16"};
  }
  if (call.q.head_stride < shape.head_dim_k || call.k.head_stride < shape.head_dim_k ||
      call.v.head_stride < shape.head_dim_v || call.out.head_stride < shape.head_dim_v) {
    return Error{"attend_tensors: a head stride is smaller than the head dimension"};
  }
  return {};
}

}  // namespace

Status attend_tensors(Context& context, int layer, const TensorCall& call) {
  Context::Impl& impl = impl_of(context);
  const context::ContextLayer* known = impl.layers.find(layer);
  if (!known) return context::no_layer(layer);
  const LayerShape& shape = known->cache->shape();
  if (const Status status = check(context, shape, call); !status) return status;
  // Before anything is read: the tensors are no larger than the batch.
  const auto cells = impl.taken(known->next_row, uint64_t{call.n_tokens} * call.sequences.size());
  if (!cells) return cells.error();
  for (size_t s = 0; s < call.sequences.size(); ++s) {
    const auto own = [&](const CellPlace& place) { return place.stream == uint32_t(call.sequences[s]); };
    if (!std::ranges::all_of(cells.value().subspan(s * call.n_tokens, call.n_tokens), own))
      return Error{"attend_tensors: sequences and their tokens must be in the order of the step's batch"};
  }
  const uint32_t n_rows = uint32_t(call.sequences.size()) * call.n_tokens;
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  const size_t q_row = size_t{shape.n_heads} * shape.head_dim_k, out_row = size_t{shape.n_heads} * shape.head_dim_v;
  // Floats are read and written where they are.
  const bool converts_q = call.q.type != TensorType::f32, converts_out = call.out.type != TensorType::f32;
  return context::guarded([&]() -> Status {
    std::vector<float>& scratch = impl.tensor_rows;
    scratch.resize(n_rows * (k_row + v_row + (converts_q ? q_row : 0) + (converts_out ? out_row : 0)));
    float *k = scratch.data(), *v = k + n_rows * k_row, *q_rows = v + n_rows * v_row,
          *out_rows = q_rows + (converts_q ? n_rows * q_row : 0);
    read(call.k, call, shape.n_kv_heads, shape.head_dim_k, k);
    read(call.v, call, shape.n_kv_heads, shape.head_dim_v, v);
    if (!all_finite(k, n_rows * (k_row + v_row))) {
      return Error{"layer " + std::to_string(layer) + " has keys or values that are not finite (NaN or infinity)"};
    }
    if (converts_q) read(call.q, call, shape.n_heads, shape.head_dim_k, q_rows);
    if (const Status status = context.store(layer, {}, k, k_row, v, v_row, n_rows); !status) return status;
    const Tensor q = converts_q ? dense(q_rows, call, q_row, shape.head_dim_k) : call.q;
    const Tensor out = converts_out ? dense(out_rows, call, out_row, shape.head_dim_v) : call.out;
    std::vector<AttendArgs>& calls = impl.tensor_calls;
    calls.assign(call.sequences.size(), AttendArgs());
    for (size_t s = 0; s < calls.size(); ++s) {
      AttendArgs& args = calls[s];
      args.q = static_cast<const float*>(q.data) + s * q.sequence_stride;
      args.q_token_stride = q.token_stride;
      args.q_head_stride = q.head_stride;
      args.out = static_cast<float*>(out.data) + s * out.sequence_stride;
      args.out_token_stride = out.token_stride;
      args.out_head_stride = out.head_stride;
      args.n_tokens = call.n_tokens;
      args.stream = uint32_t(call.sequences[s]);
      args.scale = call.scale;
      args.softcap = call.softcap;
      args.sinks = call.sinks;
    }
    if (const Status status = context.attend_all(layer, calls); !status) return status;
    if (converts_out) {
      for_each_row(call.out, call, shape.n_heads, shape.head_dim_v,
                   [&](void* row, size_t place) { write_row(out_rows + place, call.out.type, shape.head_dim_v, row); });
    }
    return {};
  });
}

}  // namespace mikv
