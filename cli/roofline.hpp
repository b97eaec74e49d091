// What the machine can do at most, measured: the bound that kernels are held against.
#pragma once

#include "mikv/thread_team.hpp"

namespace mikv::cli {

struct Roofline {
  double gmac_per_s = 0.0;   ///< fp32 multiply-adds, all threads
  double gbyte_per_s = 0.0;  ///< reading memory that no cache holds, all threads

  /// Least seconds for this much work.
  double seconds(double macs, double bytes) const;
};

/// Takes about half a second.
Roofline measure_roofline(ThreadTeam& team);

}  // namespace mikv::cli
