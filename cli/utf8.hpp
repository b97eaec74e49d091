// Text of any bytes, made fit for what takes only UTF-8: JSON, SVG, tokenisers.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mikv::cli {

/// Where the first byte is that does not belong to a character of UTF-8 (RFC 3629); npos if all do.
size_t find_invalid_utf8(std::string_view text);

/// The text with U+FFFD for each byte that does not belong to a character.
std::string to_valid_utf8(std::string_view text);

/// What a model reads as a prompt or a text: to_valid_utf8(), with a line on stderr if that changed something. `what`
/// names the text there.
std::string readable_text(std::string text, const std::string& what);

}  // namespace mikv::cli
