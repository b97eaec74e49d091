#include "json_report.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "errors.hpp"
#include "interrupt.hpp"
#include "mikv/simd.hpp"
#include "version.hpp"

namespace mikv::cli {
namespace fs = std::filesystem;
namespace {

std::string command_line_text;

std::string quoted(const std::string& argument) {
  const bool plain = !argument.empty() && argument.find_first_of(" \t\n\"'\\$<>|&;()*?") == std::string::npos;
  if (plain) return argument;
  std::string text = "'";
  for (char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  text += "'";
  return text;
}

}  // namespace

JsonReport::JsonReport(std::string path, const std::string& command) : path_(std::move(path)) {
  if (!path_.empty()) check_writable(path_, "-o");
  document_["meta"] = {{"command", command},
                       {"command_line", command_line()},
                       {"version", kVersion},
                       {"commit", kCommit},
                       {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
                       {"cpu", cpu_name()},
                       {"simd_target", simd_target()}};
  document_["rows"] = Json::array();
}

std::string json_text(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

void JsonReport::write() const {
  if (!path_.empty()) write_file(path_, json_text(document_, 2) + "\n");
}

void check_writable(const std::string& path, const std::string& option) {
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw UserError(
        fmt::format("cannot write {} {}: there is no folder {}; create it first", option, path, folder.string()));
  }
  if (fs::is_directory(path, error))
    throw UserError(fmt::format("cannot write {} {}: it is a folder; name a file", option, path));
  if (access(folder.c_str(), W_OK) != 0) {
    throw UserError(fmt::format("cannot write {} {}: {}; choose another folder", option, path, std::strerror(errno)));
  }
}

void write_file(const std::string& path, const std::string& text) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (!file) {
    const int cause = errno;
    fs::remove(partial, error);
    throw UserError(
        fmt::format("cannot write {}: {}; free some space or choose another folder", path, std::strerror(cause)));
  }
  fs::rename(partial, path, error);
  if (error) throw UserError(fmt::format("cannot write {}: {}", path, error.message()));
}

std::string read_file(const std::string& path, const std::string& what) {
  const InterruptEndsAtOnce at_once;  // a pipe may never end
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::error_code error;
  if (fs::is_directory(path, error))
    throw UserError(fmt::format("cannot read {} {}: it is a folder; name a file", what, path));
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw UserError(
        fmt::format("cannot read {} {}: {}; check the path and its permissions", what, path, std::strerror(errno)));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) throw UserError(fmt::format("cannot read {} {}: {}", what, path, std::strerror(errno)));
  return text.str();
}

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

void set_command_line(int argc, const char* const* argv) {
  command_line_text = "mikv";
  for (int i = 1; i < argc; ++i) command_line_text.append(" ").append(quoted(argv[i]));
}

const std::string& command_line() { return command_line_text; }

}  // namespace mikv::cli
