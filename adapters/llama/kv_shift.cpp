// Shifting positions (llama_memory_seq_add, context shift): llama.cpp rotates the keys of its cache tensors by a graph of its
// own, which knows every kind of RoPE. The keys are decoded into those tensors before it runs, and taken back afterwards.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "binding.hpp"

namespace mikv::llama {
namespace {

ggml_fp16_t* key_row(const Layer& layer, uint32_t stream, Cell cell) {
  char* data = static_cast<char*>(layer.k_tensor->data);
  return reinterpret_cast<ggml_fp16_t*>(data + (size_t{stream} * layer.cells_per_stream + cell) * layer.k_tensor->nb[1]);
}

// Pages that lie wholly in the tensor's memory are empty again.
void give_back(const ggml_tensor* tensor) {
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), begin = uintptr_t(tensor->data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + ggml_nbytes(tensor)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

void Binding::begin_shift() {
  if (const Status status = forget_freed_cells(); !status) return fail(status.error());
  shifting_ = true;
  for (auto& [index, layer] : layers_) {
    const uint32_t dim = layer.cache->shape().head_dim_k;
    sequences_.for_each_frame([&](FrameId frame) {
      const uint32_t stream = sequences_.stream_of_frame(frame);
      layer.cache->visit_keys(frame, [&](Cell cell, uint32_t kv_head, std::span<float> key) {
        ggml_fp32_to_fp16_row(key.data(), key_row(layer, stream, cell) + size_t{kv_head} * dim, dim);
        return false;
      });
    });
  }
}

void Binding::end_shift() {
  shifting_ = false;
  std::vector<ggml_fp16_t> before;
  for (auto& [index, layer] : layers_) {
    const uint32_t dim = layer.cache->shape().head_dim_k;
    before.resize(dim);
    sequences_.for_each_frame([&](FrameId frame) {
      const uint32_t stream = sequences_.stream_of_frame(frame);
      layer.cache->visit_keys(frame, [&](Cell cell, uint32_t kv_head, std::span<float> key) {
        const ggml_fp16_t* row = key_row(layer, stream, cell) + size_t{kv_head} * dim;
        // A key that was not rotated keeps its codes: encoding it once more could only lose.
        ggml_fp32_to_fp16_row(key.data(), before.data(), dim);
        if (std::memcmp(before.data(), row, dim * sizeof *row) == 0) return false;
        ggml_fp16_to_fp32_row(row, key.data(), dim);
        return true;
      });
    });
    give_back(layer.k_tensor);
  }
}

}  // namespace mikv::llama
