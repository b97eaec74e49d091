// Shifting positions (llama_memory_seq_add, context shift): llama.cpp rotates all keys of its cache tensors in place,
// by a node a layer. Those nodes rotate ours instead, a block at a time, so that llama.cpp's tensors stay empty and a
// shift needs no memory that a budget would have to hold.
#include <algorithm>

#include "binding.hpp"
#include "codec/block.hpp"

namespace mikv::llama {

void Binding::shift(const Layer& layer, const ggml_tensor* node, uint32_t thread, uint32_t n_threads) {
  const size_t dim = layer.cache->shape().head_dim_k,
               n_rotated = size_t(node->ne[0]);  // the first channels of each key
  const auto* shifts = static_cast<const int32_t*>(node->src[1]->data);
  RopeOperator rope(layer.shift_rope, int64_t(n_rotated), node->src[2], codec::kBlockTokens);
  std::ranges::fill(rope.keys(), 0.0f);
  std::ranges::fill(rope.positions(), 0);
  sequences_.for_each_segment([&](SegmentId segment) {
    const int32_t* of_stream = shifts + size_t{sequences_.stream_of_segment(segment)} * layer.cells_per_stream;
    const auto rotate = [&](std::span<const Cell> cells, uint32_t, std::span<float> keys) -> uint32_t {
      for (size_t i = 0; i < cells.size(); ++i) {
        rope.positions()[i] = of_stream[cells[i]];
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
    layer.cache->visit_keys(segment, rotate, thread, n_threads);
  });
}

}  // namespace mikv::llama
