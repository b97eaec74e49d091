#include "graph/row_copy.hpp"

#include <utility>

namespace mikv::llama {

bool RowCopy::reserve(size_t k_bytes, size_t v_bytes) {
  const auto grow = [&](AddressSpace& memory, size_t bytes) {
    if (memory && memory.get_deleter().size >= bytes) return true;
    AddressSpace larger = reserve_addresses(bytes);
    if (!larger) return false;
    if (memory) former_.push_back(std::move(memory));
    memory = std::move(larger);
    return true;
  };
  return grow(k_, k_bytes) && grow(v_, v_bytes);
}

void RowCopy::redirect(ggml_tensor* attention) const {
  const auto read_from = [](ggml_tensor* view, uint8_t* memory) {
    view->data = memory + view->view_offs;
    view->buffer = view->view_src->buffer;  // a view without one would be given its source's data again
  };
  read_from(attention->src[1], k_.get());
  read_from(attention->src[2], v_.get());
}

}  // namespace mikv::llama
