// One line on stderr that says how far long work is and how long it will take: redrawn in place on a terminal, a new
// line every few seconds elsewhere, so that a log shows life without being flooded.
#pragma once

#include <string>

#include "stopwatch.hpp"

namespace mikv::cli {

class Progress {
 public:
  /// `total` in any unit that costs about the same time throughout.
  Progress(std::string label, double total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(double done, const std::string& note = {});
  void advance(double units, const std::string& note = {}) { update(done_ + units, note); }
  void clear();  ///< removes the line from the terminal, before other output

  /// "eval lines  35 %  1 min 20 s left  prompt 7 of 20"
  std::string line(double elapsed_s) const;

 private:
  std::string label_;
  double total_;
  double done_ = 0.0;
  std::string note_;
  Stopwatch watch_;
  double last_drawn_s_ = -1e9;
  bool on_terminal_;
  bool visible_ = false;
};

}  // namespace mikv::cli
