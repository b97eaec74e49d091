// Plain tables: columns as wide as their widest cell, numbers to the right, a bold head on terminals.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace mikv::cli {

class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string head;
    Align align = Align::right;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  /// Short rows are filled up with empty cells.
  void add_row(std::vector<std::string> cells);
  std::string text(bool colours) const;
  void print(std::FILE* stream) const;

 private:
  std::string line(const std::vector<std::string>& cells, const std::vector<size_t>& widths) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace mikv::cli
