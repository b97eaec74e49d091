// CellCapture: which cells llama.cpp reads or writes when it saves or loads its state.
//
// llama.cpp does not show its table of cells. When it saves a state, it reads the rows of the cells from its cache
// tensors; when it loads one, it writes them. Those tensors are empty here. While a capture lives on a thread, such
// reads and writes only note which cells they concern.
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

  /// Bytes of the state for K and V rows, left unwritten.
  struct Hole {
    const uint8_t* at;
    size_t size;
  };
  const std::vector<Hole>& holes() const { return holes_; }

  /// False if a read or write could not be noted: cells() and holes() are not whole.
  bool whole() const { return whole_; }

  /// Notes a read or write of a cache tensor. Returns false without a capture on this thread. llama.cpp calls it from
  /// code that expects no exceptions.
  static bool note(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size) noexcept;

 private:
  static inline thread_local CellCapture* current_ = nullptr;
  void add(const ggml_tensor* tensor, const void* memory, size_t offset, size_t size);

  CellCapture* before_;
  bool whole_ = true;
  CellsByLayer cells_;
  std::vector<Hole> holes_;
};

}  // namespace mikv::llama
