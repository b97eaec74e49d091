// Sizes of stock llama.cpp's cache types.
#pragma once

#include "engine/engine.hpp"

namespace mikv::cli {

/// Bits per element of llama:TYPE: plain arithmetic, codes and the scales of their blocks. Throws UserError for a type
/// whose size is not known.
double stock_bits_per_element(const llama::KvChoice& choice);

}  // namespace mikv::cli
