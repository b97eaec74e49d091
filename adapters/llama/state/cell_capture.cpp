#include "state/cell_capture.hpp"

#include "binding.hpp"

namespace mikv::llama {

CellCapture::CellCapture() : before_(current_) { current_ = this; }
CellCapture::~CellCapture() { current_ = before_; }

bool CellCapture::note(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size) {
  if (!current_) return false;
  current_->holes_.push_back({static_cast<const uint8_t*>(memory), size});
  if (!is_key_cache(tensor)) return true;
  const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
  const size_t row = root->nb[1], cells_per_stream = size_t(root->ne[1]);
  const size_t first = (tensor->view_src ? tensor->view_offs : 0) + offset;
  std::vector<CellPlace>& cells = current_->cells_[cache_layer(root)];
  for (size_t i = first / row; i < (first + size) / row; ++i) {
    cells.push_back({uint32_t(i / cells_per_stream), Cell(i % cells_per_stream)});
  }
  return true;
}

}  // namespace mikv::llama
