#include "state/cell_capture.hpp"

#include <new>

#include "binding.hpp"

namespace mikv::llama {

CellCapture::CellCapture() : before_(current_) { current_ = this; }
CellCapture::~CellCapture() { current_ = before_; }

bool CellCapture::note(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size) noexcept {
  if (!current_) return false;
  try {
    current_->add(tensor, memory, offset, size);
  } catch (const std::bad_alloc&) {
    current_->whole_ = false;
  }
  return true;
}

void CellCapture::add(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size) {
  holes_.push_back({static_cast<const uint8_t*>(memory), size});
  if (!is_key_cache(tensor)) return;
  const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
  const size_t row = root->nb[1], cells_per_stream = size_t(root->ne[1]);
  const size_t first = (tensor->view_src ? tensor->view_offs : 0) + offset;
  std::vector<CellPlace>& cells = cells_[cache_layer(root)];
  for (size_t i = first / row; i < (first + size) / row; ++i) {
    cells.push_back({uint32_t(i / cells_per_stream), Cell(i % cells_per_stream)});
  }
}

}  // namespace mikv::llama
