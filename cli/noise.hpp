// Whether a benchmark ran on a machine of its own: repetitions of the same work should take the same time.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <span>

#include "statistics.hpp"

namespace mikv::cli {

class Noise {
 public:
  /// Repetitions of one measurement, times or rates. The quarter at either end may be an accident.
  void add(std::span<const double> repetitions) {
    const double low = quantile(repetitions, 0.25), high = quantile(repetitions, 0.75);
    if (low > 0) worst_ = std::max(worst_, high / low);
  }

  double worst() const { return worst_; }  ///< upper by lower quartile, the worst of all

  void warn() const {
    if (worst_ < kQuietMachine) return;
    fmt::print(stderr,
               "\nmikv: the machine was busy: repetitions of the same work differ by {:.1f} times; run it alone for "
               "figures to rely on\n",
               worst_);
  }

 private:
  static constexpr double kQuietMachine = 1.3;
  double worst_ = 1.0;
};

}  // namespace mikv::cli
