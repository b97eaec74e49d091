#include "svg_document.hpp"

#include <fmt/format.h>

#include "utf8.hpp"

namespace mikv::cli {
namespace {

std::string escaped(const std::string& text) {
  std::string result;
  for (char c : to_valid_utf8(text)) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';  // XML has no other control characters
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

}  // namespace

std::string svg_text(double x, double y, const char* style, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, style, escaped(text));
}

std::string svg_document(double width, double height, const std::string& title, const std::string& subtitle,
                         const std::string& body) {
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
             "height=\"{1:.0f}\" role=\"img\">\n"
             "<title>{2}</title>\n"
             "<style>\n"
             "  text {{ font: 13px system-ui, sans-serif; fill: #24292f }} .title {{ font-size: 18px; font-weight: 600 "
             "}}\n"
             "  .note {{ fill: #57606a }} .head {{ font-weight: 600 }} .label {{ text-anchor: end; font-family: "
             "ui-monospace, monospace; font-size: 12.5px }} .centre {{ text-anchor: middle }}\n"
             "  .axis {{ stroke: #8c959f; stroke-width: 1 }} .grid {{ stroke: #e4e8ec; stroke-width: 1 }} .paper {{ "
             "fill: "
             "#ffffff }}\n"
             "</style>\n"
             "<rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
             width, height, escaped(title)) +
         svg_text(kSvgMargin, kSvgMargin + 16, "title", title) +
         svg_text(kSvgMargin, kSvgMargin + 38, "note", subtitle) + body + "</svg>\n";
}

}  // namespace mikv::cli
