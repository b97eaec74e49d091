#include "svg_plot.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "terminal.hpp"

namespace mikv::cli {
namespace {

// Pixels.
constexpr double kMargin = 24, kTitleHeight = 64, kPanelTitleHeight = 26, kRowHeight = 30, kBarHeight = 18;
constexpr double kCharWidth = 7.6, kPanelGap = 36, kBarWidth = 230, kValueGap = 8;

constexpr const char* kOursColours[] = {"#2f6fbb", "#3a9a7d"};
constexpr const char* kMutedColour = "#9aa3ad";

std::string escaped(const std::string& text) {
  std::string result;
  for (char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string text_at(double x, double y, const char* style, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, style, escaped(text));
}

/// Pixels that a panel's bars and their values take.
double panel_width(const BarChart::Panel& panel) {
  size_t longest = 0;
  for (const auto& bar : panel.bars) longest = std::max(longest, display_width(bar.value));
  return std::max(kBarWidth + kValueGap + kCharWidth * double(longest),
                  kCharWidth * double(display_width(panel.title)));
}

std::string panel_svg(const BarChart& chart, size_t index, double x) {
  const BarChart::Panel& panel = chart.panels[index];
  const double top = kMargin + kTitleHeight;
  const double bottom = top + kPanelTitleHeight + kRowHeight * double(chart.rows.size());
  std::string out = text_at(x, top + 14, "head", panel.title);
  out += fmt::format("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" class=\"axis\"/>\n", x,
                     top + kPanelTitleHeight - 4, bottom);
  for (size_t i = 0; i < panel.bars.size() && i < chart.rows.size(); ++i) {
    const double y = top + kPanelTitleHeight + kRowHeight * double(i);
    // A bar of nothing still shows a hairline, so that the row is not read as missing.
    const double width = std::max(1.0, kBarWidth * std::clamp(panel.bars[i].share, 0.0, 1.0));
    out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\" fill=\"{}\"/>\n", x,
                       y + (kRowHeight - kBarHeight) / 2, width, kBarHeight,
                       chart.rows[i].muted ? kMutedColour : kOursColours[index % std::size(kOursColours)]);
    out += text_at(x + width + kValueGap, y + kRowHeight / 2 + 4.5, "value", panel.bars[i].value);
  }
  return out;
}

}  // namespace

std::string svg(const BarChart& chart) {
  size_t longest_label = 0;
  for (const auto& row : chart.rows) longest_label = std::max(longest_label, display_width(row.label));
  const double label_width = std::max(60.0, kCharWidth * double(longest_label)) + 12;
  double width = 2 * kMargin + label_width - kPanelGap;
  for (const auto& panel : chart.panels) width += panel_width(panel) + kPanelGap;
  const double height = 2 * kMargin + kTitleHeight + kPanelTitleHeight + kRowHeight * double(chart.rows.size());

  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "role=\"img\">\n"
      "<title>{2}</title>\n"
      "<style>\n"
      "  text {{ font: 13px system-ui, sans-serif; fill: #24292f }} .title {{ font-size: 18px; font-weight: 600 }}\n"
      "  .note {{ fill: #57606a }} .head {{ font-weight: 600 }} .label {{ text-anchor: end; font-family: ui-monospace, "
      "monospace; font-size: 12.5px }}\n"
      "  .axis {{ stroke: #8c959f; stroke-width: 1 }} .paper {{ fill: #ffffff }}\n"
      "</style>\n"
      "<rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
      width, height, escaped(chart.title));
  out += text_at(kMargin, kMargin + 16, "title", chart.title);
  out += text_at(kMargin, kMargin + 38, "note", chart.subtitle);
  const double rows_top = kMargin + kTitleHeight + kPanelTitleHeight;
  for (size_t i = 0; i < chart.rows.size(); ++i) {
    out += text_at(kMargin + label_width - 12, rows_top + kRowHeight * (double(i) + 0.5) + 4.5, "label",
                   chart.rows[i].label);
  }
  double x = kMargin + label_width;
  for (size_t p = 0; p < chart.panels.size(); ++p) {
    out += panel_svg(chart, p, x);
    x += panel_width(chart.panels[p]) + kPanelGap;
  }
  return out + "</svg>\n";
}

}  // namespace mikv::cli
