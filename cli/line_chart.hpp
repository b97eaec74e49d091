// A line chart as an SVG file: one line a thing, a value at each of some whole numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mikv::cli {

struct LineChart {
  struct Point {
    double x = 0.0, y = 0.0;
  };
  struct Line {
    std::string label;
    bool muted = false;  ///< drawn in grey: what others are compared with
    std::vector<Point> points = {};
  };

  std::string title, subtitle;
  std::string x_name, y_name;
  std::vector<Line> lines = {};
};

/// A complete SVG document. Both axes begin at 0. Points that are no numbers are left out.
std::string svg(const LineChart& chart);

}  // namespace mikv::cli
