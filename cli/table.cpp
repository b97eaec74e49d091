#include "table.hpp"

#include <algorithm>

#include "terminal.hpp"

namespace mikv::cli {

void Table::add_row(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::line(const std::vector<std::string>& cells, const std::vector<size_t>& widths) const {
  std::string text;
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::string padding(widths[i] - display_width(cells[i]), ' ');
    if (i) text += "  ";
    text += columns_[i].align == Align::right ? padding + cells[i] : cells[i] + padding;
  }
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

std::string Table::text(bool colours) const {
  std::vector<std::string> heads, rules;
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t width = display_width(columns_[i].head);
    for (const auto& row : rows_) width = std::max(width, display_width(row[i]));
    heads.push_back(columns_[i].head);
    widths.push_back(width);
    rules.emplace_back(width, '-');
  }
  std::string text = (colours ? "\033[1m" : "") + line(heads, widths) + (colours ? "\033[0m" : "") + "\n";
  text += line(rules, widths) + "\n";
  for (const auto& row : rows_) text += line(row, widths) + "\n";
  return text;
}

void Table::print(std::FILE* stream) const {
  const std::string output = text(has_colours(stream));
  std::fwrite(output.data(), 1, output.size(), stream);
  std::fflush(stream);
}

}  // namespace mikv::cli
