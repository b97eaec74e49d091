// CellCapture: which cells llama.cpp reads or writes when it saves or loads its state.
//
// llama.cpp keeps its bookkeeping of cells to itself, except where it saves a state: it then reads the rows of the
// cells in question from its cache tensors, and writes them when it loads one. Those tensors hold nothing here. While a
// capture lives on a thread, such reads and writes only note which cells they are about.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "mikv/context.hpp"

namespace mikv::llama {

class CellCapture {
 public:
  CellCapture();
  ~CellCapture();
  CellCapture(const CellCapture&) = delete;
  CellCapture& operator=(const CellCapture&) = delete;

  /// By layer, in llama.cpp's order.
  const CellsByLayer& cells() const { return cells_; }

  /// Bytes of the state that are K and V rows, which nothing was written to.
  struct Hole {
    const uint8_t* at;
    size_t size;
  };
  const std::vector<Hole>& holes() const { return holes_; }

  /// Notes a read or write of cache tensor `tensor`; false without a capture on this thread.
  static bool note(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size);

 private:
  static inline thread_local CellCapture* current_ = nullptr;
  CellCapture* before_;
  CellsByLayer cells_;
  std::vector<Hole> holes_;
};

}  // namespace mikv::llama
