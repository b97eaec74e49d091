#include "utf8.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

namespace mikv::cli {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Bytes of the character at the beginning of `text`; 0 if there is none. Overlong forms, surrogates and what lies
/// beyond U+10FFFF are no characters.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t n = lead >= 0xC2 && lead < 0xE0   ? 2
                   : lead >= 0xE0 && lead < 0xF0 ? 3
                   : lead >= 0xF0 && lead < 0xF5 ? 4
                                                 : 0;
  if (n == 0 || n > text.size()) return 0;
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < n; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return n;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t n = character_bytes(text.substr(at));
    if (n == 0) return at;
    at += n;
  }
  return std::string_view::npos;
}

std::string to_valid_utf8(std::string_view text) {
  std::string valid;
  for (;;) {
    const size_t bad = find_invalid_utf8(text);
    valid += text.substr(0, bad);
    if (bad == std::string_view::npos) return valid;
    valid += kReplacement;
    text.remove_prefix(bad + 1);
  }
}

std::string readable_text(std::string text, const std::string& what) {
  const size_t bad = find_invalid_utf8(text);
  if (bad == std::string::npos) return text;
  const auto line = 1 + std::count(text.begin(), text.begin() + std::ptrdiff_t(bad), '\n');
  fmt::print(stderr, "mikv: {} is not UTF-8 in line {}; such bytes are read as U+FFFD, and iconv converts a file\n",
             what, line);
  return to_valid_utf8(text);
}

}  // namespace mikv::cli
