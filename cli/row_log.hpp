// The rows of a long measurement as they come, one JSON object a line beside the report: what an interrupted or failing
// run leaves, and what the same command resumes from.
//
//   {"rows_of": {"command_line": ..., "version": ..., ...}}
//   {"part": 0, "kv": "mikv", ...}          part: the number of the chunk or prompt
//   {"complete": true}                      the last line of a run that came to its end
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "json_report.hpp"

namespace mikv::cli {

class RowLog {
 public:
  /// For the report at `report_path`: "x.json" has its rows in "x.rows.jsonl". Empty: rows are kept in memory only.
  /// Throws UserError if that file holds something else.
  explicit RowLog(const std::string& report_path);

  /// Takes over the rows of a run that did not come to its end, if it was the same command on the same model and input:
  /// `identity` has what tells them apart, beside the command line and version. Says so on stderr.
  void resume(Json identity, size_t n_rows);

  bool has(size_t part, const std::string& kv) const { return rows_.contains({part, kv}); }
  const Json& row(size_t part, const std::string& kv) const { return rows_.at({part, kv}); }
  /// Throws UserError if the disk is full.
  void add(size_t part, const std::string& kv, Json values);
  /// All rows are there: the next run starts anew.
  void finish();

  /// "; 12 of 20 rows are in FILE, and the same command resumes from there", or nothing.
  std::string hint() const;
  /// The same as a line on stderr, for a run that Ctrl-C ended.
  void say_interrupted() const;

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void read();
  void write_line(const Json& line);

  std::string path_;
  size_t n_rows_ = 0;
  Json identity_, old_identity_;
  bool old_is_complete_ = false;
  size_t n_good_bytes_ = 0;  ///< of the file, that new rows are put behind
  std::map<std::pair<size_t, std::string>, Json> rows_;
  std::unique_ptr<std::FILE, Closer> file_;  ///< opened for the first row that is new
};

/// Tells two texts apart; for RowLog::resume().
std::string text_fingerprint(const std::string& text);

}  // namespace mikv::cli
