// A bar chart as an SVG file: one row per thing, one or more panels of bars side by side, each bar with its value
// beside it.
#pragma once

#include <string>
#include <vector>

namespace mikv::cli {

struct BarChart {
  struct Row {
    std::string label;
    bool muted = false;  ///< drawn in grey: what others are compared with
  };
  struct Bar {
    double share = 0.0;  ///< of the panel's full width, 0..1
    std::string value;   ///< as it is written beside the bar
  };
  struct Panel {
    std::string title;
    std::vector<Bar> bars;  ///< one per row
  };

  std::string title;
  std::string subtitle;
  std::vector<Row> rows = {};
  std::vector<Panel> panels;
};

/// A complete SVG document, readable on light and dark pages.
std::string svg(const BarChart& chart);

}  // namespace mikv::cli
