#include "written_number.hpp"

#include <algorithm>
#include <cctype>

namespace mikv::cli {
namespace {

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)); }
bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

size_t count_digits(std::string_view text) { return size_t(std::ranges::find_if_not(text, is_digit) - text.begin()); }

/// Bytes of the thousands separator at the beginning of `text`: a comma, an apostrophe, or a space that does not break.
size_t separator_bytes(std::string_view text) {
  // In order: comma, apostrophe, U+2019, U+00A0, U+202F, U+2009.
  for (const std::string_view separator : {",", "'", "\xE2\x80\x99", "\xC2\xA0", "\xE2\x80\xAF", "\xE2\x80\x89"}) {
    if (text.starts_with(separator)) return separator.size();
  }
  return 0;
}

/// A hyphen within a word ("brave-5") is no sign.
bool is_negative(std::string_view before) {
  constexpr std::string_view kMinus = "\xE2\x88\x92";  // U+2212
  size_t n = 0;
  if (before.ends_with('-')) n = 1;
  if (before.ends_with(kMinus)) n = kMinus.size();
  before.remove_suffix(n);
  return n > 0 && (before.empty() || !(is_word(before.back()) || before.back() == '-'));
}

}  // namespace

WrittenNumber next_number(std::string_view text, size_t from) {
  WrittenNumber number;
  number.begin = size_t(std::find_if(text.begin() + std::ptrdiff_t(from), text.end(), is_digit) - text.begin());
  number.end = number.begin + count_digits(text.substr(number.begin));
  if (number.begin == number.end) return number;
  if (is_negative(text.substr(0, number.begin))) number.digits = "-";
  number.digits += text.substr(number.begin, number.end - number.begin);
  // Groups of three follow a first group of up to three.
  for (bool grouped = number.end - number.begin <= 3; grouped;) {
    const std::string_view rest = text.substr(number.end);
    const size_t separator = separator_bytes(rest);
    const size_t n = separator ? count_digits(rest.substr(separator)) : 0;
    if (separator && n <= 3 && separator + n == rest.size()) number.ended = false;  // "12,3", and nothing more yet
    grouped = n == 3;
    if (!grouped) break;
    number.digits += rest.substr(separator, 3);
    number.end += separator + 3;
  }
  if (!number.ended) return number;
  const std::string_view rest = text.substr(number.end);
  if (rest.starts_with('.')) {
    const size_t n = count_digits(rest.substr(1));
    number.ended = 1 + n < rest.size();
    if (n > 0) {
      number.whole = false;
      number.end += 1 + n;
    }
  } else {
    number.ended = !rest.empty();
  }
  return number;
}

}  // namespace mikv::cli
