// Report: what the contexts of a process hold and did, in a file that is kept up to date for people and for monitoring.
//
//   Report report("kv.json", log);
//   report.note(context);    // after whatever changes a figure
//   report.finish(context);  // before the context is freed
//
// The figures of the file are those of docs/llama.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mikv/context.hpp"
#include "mikv/export.h"

namespace mikv {

/// Sums over contexts.
struct ReportFigures {
  std::string spec;                  ///< as it was asked for, of the context that was noted last
  MemoryUsage usage;                 ///< of contexts that are not finished
  uint64_t peak_bytes = 0;           ///< the most that contexts of one account ever took together
  uint64_t budget_bytes = 0;         ///< 0: none
  uint64_t n_contexts = 0;           ///< that are not finished
  uint64_t n_lowered_sequences = 0;  ///< Context::lowered_sequences()
  uint64_t n_steps = 0, n_lowered = 0, n_refused_requests = 0;  ///< as in Figures, finished contexts included
};

/// One JSON object, which also names this process and when it started.
MIKV_API std::string report_json(const ReportFigures& figures);
/// The text format of Prometheus, version 0.0.4, each name with the prefix mikv_.
MIKV_API std::string report_prometheus(const ReportFigures& figures);

namespace report {
class Ledger;
class FileWriter;
}  // namespace report

/// Threads: a context is noted on a thread that may use it; several threads may note contexts of their own at once. The
/// file is written on a thread of the report's, which the first note starts: signals are blocked there.
/// Errors of writing the file are logged, the first of them, and stop nothing.
class MIKV_API Report {
 public:
  /// path: of the file, in the text format of Prometheus if it ends with .prom (for the textfile collector of its node
  /// exporter), else JSON. It is replaced as a whole and may be read by all users. If another process that lives writes
  /// a file of that name, this one's number goes into the name: FILE.PID.json.
  /// log: receives lines, or null; called on any of the threads named above; must not call the report.
  explicit Report(std::string path, Log log = {});
  /// Writes what has changed since the file was written last.
  ~Report();
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  /// Takes the figures of a context. The file follows within a tenth of a second.
  void note(const Context& context) noexcept;
  /// The same after a step. Steps are many: some are left out where counting would take more than a hundredth of the
  /// time.
  void note_step(const Context& context) noexcept;
  /// Takes the figures of a context that ends, writes the file at once, and forgets the context; what it counted stays
  /// in the sums. The file of the last context keeps its figures.
  void finish(const Context& context) noexcept;

  ReportFigures figures() const;

 private:
  Log log_;
  std::unique_ptr<report::Ledger> ledger_;
  std::unique_ptr<report::FileWriter> file_;
};

}  // namespace mikv
