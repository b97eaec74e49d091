#include "graph/row_copy.hpp"

#include <sys/mman.h>

namespace mikv::llama {

void UnmapRows::operator()(uint8_t* memory) const { munmap(memory, bytes); }

RowCopy::Memory RowCopy::map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? Memory() : Memory(static_cast<uint8_t*>(memory), UnmapRows{bytes});
}

bool RowCopy::reserve(size_t k_bytes, size_t v_bytes) {
  const auto grow = [&](Memory& memory, size_t bytes) {
    if (memory && memory.get_deleter().bytes >= bytes) return true;
    Memory larger = map(bytes);
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
