#include "line_chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "svg_document.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

// Pixels.
constexpr double kPlotWidth = 520, kPlotHeight = 300, kYAxisWidth = 64, kXAxisHeight = 52, kLabelGap = 10,
                 kLabelHeight = 16;

/// A round number (1, 2 or 5 times a power of ten) that divides 0..top into 4 to 10 parts.
double tick_step(double top) {
  const double rough = top / 8.0, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10.0 * power;
}

/// Where each label can stand without covering another, given where it would like to: in that order, top to bottom.
std::vector<double> spread(const std::vector<double>& wanted) {
  std::vector<size_t> order(wanted.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, {}, [&](size_t i) { return wanted[i]; });
  std::vector<double> placed(wanted);
  for (size_t i = 1; i < order.size(); ++i)
    placed[order[i]] = std::max(placed[order[i]], placed[order[i - 1]] + kLabelHeight);
  return placed;
}

/// The values of the vertical axis and where they stand.
class YAxis {
 public:
  YAxis(bool logarithmic, double least, double most) : logarithmic_(logarithmic) {
    if (!logarithmic) {
      top_ = most > 0.0 ? 1.05 * most : 1.0;
      return;
    }
    least_ = least > 0.0 ? std::pow(10.0, std::floor(std::log10(least))) : 0.1;
    top_ = std::pow(10.0, std::ceil(std::log10(std::max(most, least_ * 1.01))));
  }
  /// 0 at the bottom, 1 at the top.
  double place(double y) const { return logarithmic_ ? std::log(y / least_) / std::log(top_ / least_) : y / top_; }
  std::vector<double> ticks() const {
    std::vector<double> ticks;
    const double step = tick_step(top_);
    for (double y = logarithmic_ ? least_ : 0.0; y <= top_ * 1.0001; logarithmic_ ? y *= 10.0 : y += step)
      ticks.push_back(y);
    return ticks;
  }

 private:
  bool logarithmic_;
  double least_ = 0.0, top_ = 1.0;
};

}  // namespace

std::string svg(const LineChart& chart) {
  const auto drawable = [&](const LineChart::Point& point) {
    return std::isfinite(point.x) && std::isfinite(point.y) && (!chart.y_log || point.y > 0.0);
  };
  double x_top = 0.0, y_top = 0.0, y_least = INFINITY;
  size_t longest_label = 0;
  for (const auto& line : chart.lines) {
    longest_label = std::max(longest_label, display_width(line.label));
    for (const auto& point : line.points) {
      longest_label = std::max(longest_label, display_width(point.label));
      if (drawable(point))
        x_top = std::max(x_top, point.x), y_top = std::max(y_top, point.y), y_least = std::min(y_least, point.y);
    }
  }
  x_top = x_top > 0.0 ? x_top : 1.0;
  const YAxis y_axis(chart.y_log, std::isfinite(y_least) ? y_least : 0.0, y_top);
  const double left = kSvgMargin + kYAxisWidth, top = kSvgMargin + kSvgTitleHeight, bottom = top + kPlotHeight;
  const auto x_at = [&](double x) { return left + kPlotWidth * x / x_top; };
  const auto y_at = [&](double y) { return bottom - kPlotHeight * y_axis.place(y); };
  const auto rule = [](const char* style, double x1, double y1, double x2, double y2) {
    return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2,
                       style);
  };

  std::string body;
  const double x_step = tick_step(x_top);
  const std::vector<double> y_ticks = y_axis.ticks();
  for (const double y : y_ticks) {
    body += rule(y == y_ticks.front() ? "axis" : "grid", left, y_at(y), left + kPlotWidth, y_at(y));
    body += svg_text(left - 8, y_at(y) + 4.5, "label", fmt::format("{:g}", y));
  }
  for (double x = 0.0; x <= x_top; x += x_step)
    body += svg_text(x_at(x), bottom + 18, "centre", fmt::format("{:g}", x));
  body += svg_text(left + kPlotWidth / 2, bottom + 40, "centre", chart.x_name);
  body += svg_text(left, top - 8, "head", chart.y_name);

  std::vector<double> ends;
  for (const auto& line : chart.lines)
    ends.push_back(line.points.empty() || !drawable(line.points.back()) ? bottom : y_at(line.points.back().y));
  const std::vector<double> labels = spread(ends);
  size_t n_coloured = 0;
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    const auto& line = chart.lines[i];
    const char* colour = line.muted ? kSvgMutedColour : kSvgColours[n_coloured++ % std::size(kSvgColours)];
    std::string path;
    for (const auto& point : line.points) {
      if (!drawable(point)) continue;
      path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", x_at(point.x), y_at(point.y));
      body += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x_at(point.x), y_at(point.y),
                          colour);
      if (!point.label.empty()) body += svg_text(x_at(point.x) + 6, y_at(point.y) - 6, "value", point.label);
    }
    body += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", path, colour);
    const bool points_say_it = std::ranges::any_of(line.points, [](const auto& point) { return !point.label.empty(); });
    if (!points_say_it) body += svg_text(left + kPlotWidth + kLabelGap, labels[i] + 4.5, "value", line.label);
  }
  const double width = left + kPlotWidth + kLabelGap + kSvgCharWidth * double(longest_label) + kSvgMargin;
  const double lowest = labels.empty() ? 0.0 : *std::ranges::max_element(labels) + kLabelHeight;
  return svg_document(width, std::max(bottom + kXAxisHeight, lowest) + kSvgMargin / 2, chart.title, chart.subtitle,
                      body);
}

}  // namespace mikv::cli
