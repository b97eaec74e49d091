// llama.cpp's own state of our context names the cells and has holes where the rows of K and V would be, 16-bit floats.
// The same state with rows of the other type in them, and that type in front of them, is what a context of that type
// loads.
#include "state/stock_prompt.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <vector>

#include "ggml-cpu.h"
#include "interpose/registry.hpp"
#include "state/state_stream.hpp"

namespace mikv::llama {
namespace {

// In front of the rows of a layer's K, and of its V.
struct RowsHeader {
  int32_t type;
  uint64_t row_bytes;
  static constexpr size_t kBytes = sizeof type + sizeof row_bytes;

  static RowsHeader read(const uint8_t* bytes) {
    RowsHeader header;
    std::memcpy(&header.type, bytes, sizeof header.type);
    std::memcpy(&header.row_bytes, bytes + sizeof header.type, sizeof header.row_bytes);
    return header;
  }
};

template <typename T>
void append(std::vector<uint8_t>& to, const T* items, size_t n) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(items);
  to.insert(to.end(), bytes, bytes + n * sizeof(T));
}

// llama.cpp rotates what it quantises (llama_kv_cache::build_input_k_rot, build_input_v_rot): the largest block that
// divides a key, blocks of 64 of a value. Channels that are rotated together; 0: it does not.
uint32_t rotated_block(ggml_type type, uint32_t head_dim, bool keys) {
  constexpr uint32_t kSmallest = 64;
  const char* disabled = std::getenv("LLAMA_ATTN_ROT_DISABLE");
  if (!ggml_is_quantized(type) || head_dim % kSmallest != 0 || (disabled && std::atoi(disabled))) return 0;
  return keys ? head_dim & (0u - head_dim) : kSmallest;
}

// The orthonormal Walsh-Hadamard transform of a power of two of channels.
void rotate(std::span<float> x) {
  for (size_t half = 1; half < x.size(); half *= 2) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (i & half) continue;
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
  const float norm = 1.0f / std::sqrt(float(x.size()));
  for (float& value : x) value *= norm;
}

// Rows of halves, all heads of a token, in the other type.
class RowEncoder {
 public:
  RowEncoder(ggml_type type, size_t n_elements, uint32_t rotated_block)
      : type_(type), block_(rotated_block), floats_(n_elements) {}

  RowsHeader header() const { return {type_, ggml_row_size(type_, int64_t(floats_.size()))}; }

  void encode(const uint16_t* halves, uint8_t* row) {
    ggml_fp16_to_fp32_row(halves, floats_.data(), int64_t(floats_.size()));
    for (size_t i = 0; block_ && i < floats_.size(); i += block_) rotate({floats_.data() + i, block_});
    if (type_ == GGML_TYPE_F16) {
      ggml_fp32_to_fp16_row(floats_.data(), reinterpret_cast<ggml_fp16_t*>(row), int64_t(floats_.size()));
    } else {
      ggml_get_type_traits_cpu(type_)->from_float(floats_.data(), row, int64_t(floats_.size()));
    }
  }

 private:
  ggml_type type_;
  uint32_t block_;
  std::vector<float> floats_;
};

// All that a layer has staged, as halves by cell; the number of tokens.
uint64_t read_layer(const Context& cache, int index, const LayerTensors& layer, std::vector<uint16_t>& k,
                    std::vector<uint16_t>& v) {
  const LayerShape& shape = cache.shape(index);
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  k.resize(layer.cells_per_stream * k_row);
  v.resize(layer.cells_per_stream * v_row);
  return cache.read_f16(index, 0, k.data(), k_row, v.data(), v_row);
}

bool has_one_plain_cache(const llama_model* model) {
  const llama_rope_type rope = llama_model_rope_type(model);
  return !llama_model_n_swa(model) && !llama_model_is_hybrid(model) && rope != LLAMA_ROPE_TYPE_MROPE &&
         rope != LLAMA_ROPE_TYPE_IMROPE;
}

Result<std::vector<uint8_t>> state_of_type(Binding& binding, ggml_type type) {
  const auto state = read_state(binding.context(), 0, 0);
  if (!state) return state.error();
  // The keys of all layers, then the values of all.
  const auto& holes = state.value().holes;
  const size_t n_layers = binding.layers().size();
  if (!has_one_plain_cache(llama_get_model(binding.context())) || holes.size() != 2 * n_layers) {
    return Error{
        "llama:TYPE:prefill=exact needs a model with one KV cache of plain positions; use llama:TYPE, which reads the "
        "prompt by itself"};
  }
  std::vector<uint8_t> bytes;
  std::vector<uint16_t> k, v;
  const uint8_t* words = state.value().words.data();
  uint64_t at = 0;
  auto layer = binding.layers().begin();
  for (size_t hole = 0; hole < holes.size(); ++hole, ++layer) {
    const bool keys = hole < n_layers;
    if (hole == n_layers) layer = binding.layers().begin();
    const LayerShape& shape = binding.cache().shape(layer->first);
    const std::vector<CellPlace>& cells = state.value().cells.at(layer->first);
    const uint32_t head_dim = keys ? shape.head_dim_k : shape.head_dim_v;
    const size_t n_elements = size_t{shape.n_kv_heads} * head_dim, row_bytes = n_elements * sizeof(uint16_t);

    const uint64_t n_words = holes[hole].offset - at;
    const RowsHeader found =
        n_words < RowsHeader::kBytes ? RowsHeader{-1, 0} : RowsHeader::read(words + n_words - RowsHeader::kBytes);
    if (found.type != GGML_TYPE_F16 || found.row_bytes != row_bytes || holes[hole].size != cells.size() * row_bytes) {
      return Error{
          "llama.cpp writes its state in a form that mikv does not know; use the llama.cpp version that mikv is built "
          "for"};
    }
    RowEncoder encoder(type, n_elements, rotated_block(type, head_dim, keys));
    const RowsHeader header = encoder.header();
    append(bytes, words, n_words - RowsHeader::kBytes);
    append(bytes, &header.type, 1);
    append(bytes, &header.row_bytes, 1);
    words += n_words;
    at = holes[hole].offset + holes[hole].size;

    if (read_layer(binding.cache(), layer->first, layer->second, k, v) != cells.size()) {
      return Error{
          "a prompt that is compressed already cannot be copied to a context of llama.cpp; copy it before its end"};
    }
    const size_t begin = bytes.size();
    bytes.resize(begin + cells.size() * header.row_bytes);
    for (size_t i = 0; i < cells.size(); ++i) {
      encoder.encode((keys ? k : v).data() + cells[i].cell * n_elements, bytes.data() + begin + i * header.row_bytes);
    }
  }
  append(bytes, words, state.value().size - at);
  return bytes;
}

}  // namespace

Status copy_prompt(llama_context* from, llama_context* to, ggml_type type) {
  Binding* binding = Registry::get().of_context(from);
  if (!binding) return Error{"only the prompt of a context that mikv keeps can be copied to one of llama.cpp's"};
  try {
    const auto state = state_of_type(*binding, type);
    if (!state) return state.error();
    llama_memory_clear(llama_get_memory(to), false);
    if (llama_state_seq_set_data_ext(to, state.value().data(), state.value().size(), 0, 0) == state.value().size())
      return {};
    return Error{"llama.cpp did not take the prompt (is its context as large?)"};
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory(
        "out of memory for a copy of the prompt; use fewer caches at once or a shorter context");
  }
}

}  // namespace mikv::llama
