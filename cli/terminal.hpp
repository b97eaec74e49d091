// What a terminal can show. Files and pipes get plain text.
#pragma once

#include <cstdio>
#include <string>

#include "mikv/byte_size.hpp"

namespace mikv::cli {

bool is_terminal(std::FILE* stream);         ///< a terminal that takes cursor movement
size_t terminal_columns(std::FILE* stream);  ///< 80 where it cannot be known
bool has_colours(std::FILE* stream);         ///< the same, unless NO_COLOR is set (https://no-color.org)

using mikv::format_bytes;                     ///< "12.3 MiB"
std::string format_duration(double seconds);  ///< "3 min 20 s"

/// Columns that `text` takes on a terminal, for UTF-8 without wide characters.
size_t display_width(const std::string& text);

}  // namespace mikv::cli
