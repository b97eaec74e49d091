#include "mikv/byte_size.hpp"

#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>

namespace mikv {

Result<uint64_t> parse_size(std::string_view text) {
  static const std::map<std::string, double> units = {
      {"", 1.0},     {"b", 1.0},    {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"tib", 0x1p40}, {"k", 0x1p10},
      {"m", 0x1p20}, {"g", 0x1p30}, {"t", 0x1p40},   {"kb", 1e3},     {"mb", 1e6},     {"gb", 1e9},     {"tb", 1e12}};
  const Error error{"\"" + std::string(text) + "\" is no size; write, for example, 300MiB or 2GiB"};
  double number = 0.0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc()) return error;
  std::string unit;
  for (const char c : text.substr(size_t(end - text.data()))) {
    if (!std::isspace(static_cast<unsigned char>(c))) unit += char(std::tolower(static_cast<unsigned char>(c)));
  }
  const auto found = units.find(unit);
  if (found == units.end()) return error;
  const double bytes = number * found->second;
  if (!(bytes >= 1.0) || bytes > 0x1p62) return error;
  return uint64_t(bytes);
}

std::string format_bytes(double bytes) {
  const char* unit = "B";
  for (const char* larger : {"KiB", "MiB", "GiB", "TiB"}) {
    if (bytes < 1024.0) break;
    bytes /= 1024.0;
    unit = larger;
  }
  const bool whole = unit[1] == 0 || bytes >= 99.95;
  char text[40];
  std::snprintf(text, sizeof text, "%.*f %s", whole ? 0 : bytes < 9.995 ? 2 : 1, bytes, unit);
  return text;
}

}  // namespace mikv
