#include "progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "terminal.hpp"

namespace mikv::cli {
namespace {

constexpr double kTerminalPeriod_s = 0.1;
constexpr double kLogPeriod_s = 10.0;

}  // namespace

Progress::Progress(std::string label, double total)
    : label_(std::move(label)), total_(std::max(total, 1e-9)), on_terminal_(is_terminal(stderr)) {}

Progress::~Progress() { clear(); }

std::string Progress::line(double elapsed_s) const {
  const double share = std::clamp(done_ / total_, 0.0, 1.0);
  std::string text = fmt::format("{}  {:3.0f} %", label_, 100.0 * share);
  // The first moments say little about the rest.
  if (share > 0.0 && elapsed_s > 1.0)
    text += fmt::format("  {} left", format_duration(elapsed_s * (1.0 - share) / share));
  if (!note_.empty()) text += "  " + note_;
  return text;
}

void Progress::update(double done, const std::string& note) {
  done_ = done;
  if (!note.empty()) note_ = note;
  const double now = watch_.seconds();
  if (now - last_drawn_s_ < (on_terminal_ ? kTerminalPeriod_s : kLogPeriod_s)) return;
  // A log needs no line for work that is over before it could be read.
  if (!on_terminal_ && (done >= total_ || now < 2.0)) return;
  last_drawn_s_ = now;
  std::string text = line(now);
  // A line that wraps cannot be redrawn in place.
  if (on_terminal_) text.resize(std::min(text.size(), terminal_columns(stderr) - 1));
  fmt::print(stderr, "{}{}{}", on_terminal_ ? "\r" : "", text, on_terminal_ ? "\033[K" : "\n");
  std::fflush(stderr);
  visible_ = true;
}

void Progress::clear() {
  if (visible_ && on_terminal_) fmt::print(stderr, "\r\033[K");
  visible_ = false;
}

}  // namespace mikv::cli
