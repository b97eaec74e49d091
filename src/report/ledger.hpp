// Ledger: the figures of each context, as they were when it was noted last, and those of contexts that are gone.
#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <string>

#include "mikv/report.hpp"

namespace mikv::report {

/// What a context is noted after. Only the figures of a step may be left out; the end decides what is undecided.
enum class Occasion { step, call, end };

class Ledger {
 public:
  /// Returns false if the context is left out. Called on a thread that may use it.
  bool note(const Context& context, Occasion occasion);
  /// Returns whether other contexts are left.
  bool forget(const Context& context);
  /// Any thread may call it at any time.
  ReportFigures sums();

 private:
  struct Entry {
    MemoryUsage usage;
    Figures figures;
    uint64_t n_lowered_sequences = 0;
    std::chrono::steady_clock::time_point due{};  ///< for steps
  };

  std::mutex mutex_;
  std::map<const Context*, Entry> entries_;
  Figures of_the_gone_;
  std::string last_spec_;
  uint64_t peak_bytes_ = 0, budget_bytes_ = 0;
};

}  // namespace mikv::report
