// What every SVG picture of the command has in common: the frame, the styles, text.
#pragma once

#include <string>

namespace mikv::cli {

/// Pixels.
inline constexpr double kSvgMargin = 24, kSvgTitleHeight = 64, kSvgCharWidth = 7.6;
/// Colours of what is ours, and of what it is compared with.
inline constexpr const char* kSvgColours[] = {"#2f6fbb", "#3a9a7d", "#b5542c", "#7b5ea7", "#a67c00"};
inline constexpr const char* kSvgMutedColour = "#9aa3ad";

std::string svg_text(double x, double y, const char* style, const std::string& text);
/// A complete document around `body`, readable on light and dark pages. Title and subtitle stand in its first
/// kSvgMargin + kSvgTitleHeight pixels.
std::string svg_document(double width, double height, const std::string& title, const std::string& subtitle,
                         const std::string& body);

}  // namespace mikv::cli
