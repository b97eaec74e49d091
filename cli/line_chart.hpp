// A line chart as an SVG file: one line a thing, values at some numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mikv::cli {

struct LineChart {
  struct Point {
    double x = 0.0, y = 0.0;
    std::string label = {};  ///< stands beside it; a line with any is not named itself
  };
  struct Line {
    std::string label;
    bool muted = false;  ///< drawn in grey: what others are compared with
    std::vector<Point> points = {};
  };

  std::string title, subtitle;
  std::string x_name, y_name;
  std::vector<Line> lines = {};
  bool y_log = false;
};

/// A complete SVG document. Axes begin at 0, a logarithmic one at a power of ten. Points that are no numbers are left
/// out, on a logarithmic axis those that are not positive too.
std::string svg(const LineChart& chart);

}  // namespace mikv::cli
