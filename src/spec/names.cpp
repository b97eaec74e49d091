#include "spec/names.hpp"

#include <algorithm>

namespace mikv::spec {

namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 40;
  std::string shown = "'";
  for (const char c : text.substr(0, kMaxShown)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  if (text.size() > kMaxShown) shown += "...";
  return shown + "'";
}

std::string suggestion(std::string_view typed, const std::vector<std::string_view>& names) {
  if (typed.size() > 32) return "";
  size_t best = 3;
  std::string_view nearest;
  for (const std::string_view name : names) {
    const size_t distance = edit_distance(typed, name);
    if (distance < best && 2 * distance <= std::max(name.size(), size_t{3})) {
      best = distance;
      nearest = name;
    }
  }
  return nearest.empty() ? "" : ": did you mean '" + std::string(nearest) + "'?";
}

std::string joined(const std::vector<std::string_view>& names) {
  std::string list;
  for (const std::string_view name : names) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

std::string any_of(const std::vector<std::string_view>& names) {
  std::string list;
  for (size_t i = 0; i < names.size(); ++i) {
    list += (i == 0 ? "" : i + 1 == names.size() ? " or " : ", ") + std::string(names[i]);
  }
  return list;
}

std::vector<std::string_view> format_names(codec::FormatUse tier, bool quantised_only) {
  std::vector<std::string_view> names;
  for (const codec::FormatRow& row : codec::kFormats) {
    if (row.named() && row.used_in(tier) && (row.quantised() || !quantised_only)) names.push_back(row.name);
  }
  if (tier == codec::kInHi) std::reverse(names.begin(), names.end());
  return names;
}

}  // namespace mikv::spec
