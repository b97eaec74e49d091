// Whole numbers as people and models write them: 12345, 12,345, 12'345, -5.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mikv::cli {

/// A number in a text.
struct WrittenNumber {
  std::string digits;  ///< without separators, '-' before them if it is negative
  bool whole = true;   ///< false if it has decimals: 47123.7
  bool ended = true;   ///< false if the text ends where the number could continue
  size_t begin = 0;    ///< of its first digit
  size_t end = 0;      ///< behind it
};

/// The first number in `text` from `from` on. `digits` is empty if there is none.
WrittenNumber next_number(std::string_view text, size_t from);

}  // namespace mikv::cli
