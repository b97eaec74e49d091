#include "bar_chart.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "svg_document.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

// Pixels.
constexpr double kPanelTitleHeight = 26, kRowHeight = 30, kBarHeight = 18, kPanelGap = 36, kBarWidth = 230,
                 kValueGap = 8;
constexpr size_t kPanelColours = 2;

/// Pixels that a panel's bars and their values take.
double panel_width(const BarChart::Panel& panel) {
  size_t longest = 0;
  for (const auto& bar : panel.bars) longest = std::max(longest, display_width(bar.value));
  return std::max(kBarWidth + kValueGap + kSvgCharWidth * double(longest),
                  kSvgCharWidth * double(display_width(panel.title)));
}

std::string panel_svg(const BarChart& chart, size_t index, double x) {
  const BarChart::Panel& panel = chart.panels[index];
  const double top = kSvgMargin + kSvgTitleHeight;
  const double bottom = top + kPanelTitleHeight + kRowHeight * double(chart.rows.size());
  std::string out = svg_text(x, top + 14, "head", panel.title);
  out += fmt::format("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" class=\"axis\"/>\n", x,
                     top + kPanelTitleHeight - 4, bottom);
  for (size_t i = 0; i < panel.bars.size() && i < chart.rows.size(); ++i) {
    const double y = top + kPanelTitleHeight + kRowHeight * double(i);
    // A bar of nothing still shows a hairline, so that the row is not read as missing.
    const double width = std::max(1.0, kBarWidth * std::clamp(panel.bars[i].share, 0.0, 1.0));
    out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\" fill=\"{}\"/>\n", x,
                       y + (kRowHeight - kBarHeight) / 2, width, kBarHeight,
                       chart.rows[i].muted ? kSvgMutedColour : kSvgColours[index % kPanelColours]);
    out += svg_text(x + width + kValueGap, y + kRowHeight / 2 + 4.5, "value", panel.bars[i].value);
  }
  return out;
}

}  // namespace

std::string svg(const BarChart& chart) {
  size_t longest_label = 0;
  for (const auto& row : chart.rows) longest_label = std::max(longest_label, display_width(row.label));
  const double label_width = std::max(60.0, kSvgCharWidth * double(longest_label)) + 12;
  double width = 2 * kSvgMargin + label_width - kPanelGap;
  for (const auto& panel : chart.panels) width += panel_width(panel) + kPanelGap;
  const double height = 2 * kSvgMargin + kSvgTitleHeight + kPanelTitleHeight + kRowHeight * double(chart.rows.size());

  std::string out;
  const double rows_top = kSvgMargin + kSvgTitleHeight + kPanelTitleHeight;
  for (size_t i = 0; i < chart.rows.size(); ++i) {
    out += svg_text(kSvgMargin + label_width - 12, rows_top + kRowHeight * (double(i) + 0.5) + 4.5, "label",
                    chart.rows[i].label);
  }
  double x = kSvgMargin + label_width;
  for (size_t p = 0; p < chart.panels.size(); ++p) {
    out += panel_svg(chart, p, x);
    x += panel_width(chart.panels[p]) + kPanelGap;
  }
  return svg_document(width, height, chart.title, chart.subtitle, out);
}

}  // namespace mikv::cli
