// Processes by number and start: a report names the one that writes it, so that two do not write the same file.
#pragma once

#include <cstdint>
#include <string>

namespace mikv::report {

/// Numbers are used again, so the time tells processes apart.
struct Process {
  uint64_t id = 0;
  uint64_t started = 0;  ///< in ticks since the machine did; 0 if there is no such process
  bool operator==(const Process&) const = default;
};

const Process& this_process();

/// The process whose report the file is; 0 if nobody's, or of one that has ended.
uint64_t living_owner(const std::string& file);

}  // namespace mikv::report
