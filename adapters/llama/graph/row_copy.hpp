// RowCopy: the rows of one layer in llama.cpp's own form, for its own attention operator. Layers are computed one after
// the other, so one copy serves them all.
#pragma once

#include <cstdint>
#include <vector>

#include "address_space.hpp"
#include "ggml.h"

namespace mikv::llama {

class RowCopy {
 public:
  /// Makes room for tensors of these sizes; unwritten pages cost address space only. Earlier redirections stay valid.
  /// Returns false if there is no address space.
  bool reserve(size_t k_bytes, size_t v_bytes);
  /// Lets a FLASH_ATTN_EXT node over a layer's cache tensors read the copy.
  void redirect(ggml_tensor* attention) const;
  /// Row 0 of the first stream, as halves.
  uint16_t* k() const { return reinterpret_cast<uint16_t*>(k_.get()); }
  uint16_t* v() const { return reinterpret_cast<uint16_t*>(v_.get()); }

 private:
  AddressSpace k_, v_;
  std::vector<AddressSpace> former_;  ///< too small by now; graphs made before may still point there
};

}  // namespace mikv::llama
