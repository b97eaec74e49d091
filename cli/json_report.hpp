// The file that -o writes: {"meta": {command, version, commit, model, cpu, threads, seed, ...}, "rows": [...]}.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace mikv::cli {

using Json = nlohmann::ordered_json;  // keys stay in the order in which a reader wants them

/// As text. Strings may hold any bytes (names of files, arguments): those that are no UTF-8 become U+FFFD. `indent`:
/// spaces a level; -1: all on one line.
std::string json_text(const Json& json, int indent);

class JsonReport {
 public:
  /// meta starts with the command line, version, commit, CPU and date. `path` may be empty: then write() does nothing.
  /// Throws UserError if the file could not be written later, so that long work is not done in vain.
  JsonReport(std::string path, const std::string& command);

  Json& meta() { return document_["meta"]; }
  void add_row(Json row) { document_["rows"].push_back(std::move(row)); }
  const Json& document() const { return document_; }

  /// Replaces the file in one step; throws UserError if the disk is full or the folder not writable.
  void write() const;

 private:
  std::string path_;
  Json document_;
};

/// Throws UserError unless a file can be created or replaced at `path`. `option` names the flag it came from.
void check_writable(const std::string& path, const std::string& option);

/// Writes `text` beside `path` and renames it into place.
void write_file(const std::string& path, const std::string& text);

/// The whole of a file, or of standard input for "-". Throws UserError; `what` says what the file was to be.
std::string read_file(const std::string& path, const std::string& what);

/// As the machine calls its processor.
std::string cpu_name();

/// The command line, for reports: set once by main.
void set_command_line(int argc, const char* const* argv);
const std::string& command_line();

}  // namespace mikv::cli
