// llama.cpp's own state of our context names the cells and has holes where the rows of K and V would be, 16-bit floats. The same state
// with rows of the other type in them, and that type in front of them, is what a context of that type loads.
#include "stock_prompt.hpp"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "codec/hadamard.hpp"
#include "ggml-cpu.h"
#include "registry.hpp"
#include "state_stream.hpp"

namespace mikv::llama {
namespace {

// In front of the rows of a layer's K, and of its V.
struct RowsHeader {
  int32_t type;
  uint64_t row_bytes;
  static constexpr size_t kBytes = sizeof type + sizeof row_bytes;
};

// llama.cpp rotates what it quantises (llama_kv_cache::build_input_k_rot, build_input_v_rot): the largest block that divides a key, blocks
// of 64 of a value.
constexpr uint32_t kRotated = 64;

bool rotates(ggml_type type, uint32_t head_dim) {
  const char* disabled = std::getenv("LLAMA_ATTN_ROT_DISABLE");
  return ggml_is_quantized(type) && head_dim % kRotated == 0 && !(disabled && std::atoi(disabled));
}

void append(std::vector<uint8_t>& to, const void* bytes, size_t n) {
  to.insert(to.end(), static_cast<const uint8_t*>(bytes), static_cast<const uint8_t*>(bytes) + n);
}

// One row of halves, all heads of a token, in the other type.
class RowEncoder {
 public:
  RowEncoder(ggml_type type, uint32_t n_heads, uint32_t head_dim, uint32_t rotated)
      : type_(type), block_(rotates(type, head_dim) ? rotated : 0), floats_(size_t{n_heads} * head_dim) {}

  uint64_t row_bytes() const { return ggml_row_size(type_, int64_t(floats_.size())); }

  void encode(const uint16_t* halves, uint8_t* row) {
    ggml_fp16_to_fp32_row(halves, floats_.data(), int64_t(floats_.size()));
    for (size_t i = 0; block_ && i < floats_.size(); i += block_) codec::hadamard(floats_.data() + i, block_);
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

}  // namespace

Status copy_prompt(llama_context* from, llama_context* to, ggml_type type) {
  Binding* binding = Registry::get().of_context(from);
  if (!binding) return Error{"only the prompt of a context that mikv keeps can be copied to one of llama.cpp's"};
  const auto state = read_state(from, 0, 0);
  if (!state) return Error{state.error()};
  const auto& holes = state.value().holes;
  const size_t n_layers = binding->layers().size();
  const llama_model* model = llama_get_model(from);
  const auto rope = llama_model_rope_type(model);
  if (llama_model_n_swa(model) || llama_model_is_hybrid(model) || rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ||
      holes.size() != 2 * n_layers) {
    return Error{"llama:TYPE:prefill=exact needs a model with one KV cache of plain positions; use llama:TYPE, which reads the prompt by itself"};
  }

  std::vector<uint8_t> bytes;
  const uint8_t* words = state.value().words.data();
  uint64_t at = 0;
  std::vector<uint16_t> k, v;
  auto layer = binding->layers().begin();
  for (size_t hole = 0; hole < holes.size(); ++hole, ++layer) {
    if (hole == n_layers) layer = binding->layers().begin();
    const LayerCache& cache = *layer->second.cache;
    const LayerShape& shape = cache.shape();
    const bool keys = hole < n_layers;
    const uint32_t dim = keys ? shape.head_dim_k : shape.head_dim_v;
    const size_t row = size_t{shape.n_kv_heads} * dim;
    const uint64_t n = holes[hole].size / (row * sizeof(uint16_t));
    const std::vector<StreamCell>& cells = state.value().cells.at(layer->first);

    const uint64_t n_words = holes[hole].offset - at;
    RowsHeader header;
    if (n_words >= RowsHeader::kBytes) {
      std::memcpy(&header.type, words + n_words - RowsHeader::kBytes, sizeof header.type);
      std::memcpy(&header.row_bytes, words + n_words - sizeof header.row_bytes, sizeof header.row_bytes);
    }
    if (n_words < RowsHeader::kBytes || header.type != GGML_TYPE_F16 || header.row_bytes != row * sizeof(uint16_t) || n != cells.size()) {
      return Error{"llama.cpp writes its state in a form that mikv does not know; use the llama.cpp version that mikv is built for"};
    }
    append(bytes, words, n_words - RowsHeader::kBytes);
    words += n_words;
    at = holes[hole].offset + holes[hole].size;

    RowEncoder encoder(type, shape.n_kv_heads, dim, keys ? dim & (0u - dim) : kRotated);
    header = {int32_t(type), encoder.row_bytes()};
    append(bytes, &header.type, sizeof header.type);
    append(bytes, &header.row_bytes, sizeof header.row_bytes);

    k.assign(size_t{layer->second.cells_per_stream} * shape.n_kv_heads * shape.head_dim_k, 0);
    v.assign(size_t{layer->second.cells_per_stream} * shape.n_kv_heads * shape.head_dim_v, 0);
    uint64_t n_stored = 0;
    binding->sequences().for_each_frame([&](FrameId frame) {
      cache.read_f16(frame, k.data(), size_t{shape.n_kv_heads} * shape.head_dim_k, v.data(), size_t{shape.n_kv_heads} * shape.head_dim_v);
      n_stored += cache.spec().uncompressed() ? cache.n_cells(frame) : cache.n_staged(frame);
    });
    if (n_stored != n) return Error{"a prompt that is compressed already cannot be copied to a context of llama.cpp; copy it before its end"};
    const size_t begin = bytes.size();
    bytes.resize(begin + n * encoder.row_bytes());
    for (uint64_t i = 0; i < n; ++i) {
      encoder.encode((keys ? k : v).data() + cells[i].cell * row, bytes.data() + begin + i * encoder.row_bytes());
    }
  }
  append(bytes, words, state.value().size - at);

  llama_memory_clear(llama_get_memory(to), false);
  if (llama_state_seq_set_data_ext(to, bytes.data(), bytes.size(), 0, 0) == bytes.size()) return {};
  return Error{"llama.cpp did not take the prompt (is its context as large?)"};
}

}  // namespace mikv::llama
