#include "row_log.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "errors.hpp"
#include "version.hpp"

namespace mikv::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kIdentity = "rows_of";

std::string rows_path(const std::string& report_path) {
  constexpr std::string_view kEnd = ".json";
  if (report_path.empty()) return {};
  return (report_path.ends_with(kEnd) ? report_path.substr(0, report_path.size() - kEnd.size()) : report_path) +
         ".rows.jsonl";
}

}  // namespace

RowLog::RowLog(const std::string& report_path) : path_(rows_path(report_path)) {
  std::error_code failure;
  if (!path_.empty() && fs::exists(path_, failure)) read();
}

void RowLog::read() {
  const std::string text = read_file(path_, "rows");
  if (text.empty()) return;
  const auto next_line = [&] {  // a line without an end was being written when the run was killed
    const size_t end = text.find('\n', n_good_bytes_);
    return end == std::string::npos ? Json()
                                    : Json::parse(text.substr(n_good_bytes_, end - n_good_bytes_), nullptr, false);
  };
  const Json head = next_line();
  if (!head.is_object() || !head.contains(kIdentity))
    throw UserError(
        fmt::format("{} is where rows are kept, but holds something else; move it or choose another -o", path_));
  old_identity_ = head.at(kIdentity);
  for (Json row = head; row.is_object(); row = next_line()) {
    n_good_bytes_ = text.find('\n', n_good_bytes_) + 1;
    old_is_complete_ |= row.contains("complete");
    const auto part = row.find("part"), kv = row.find("kv");
    if (part == row.end() || kv == row.end() || !part->is_number_unsigned() || !kv->is_string()) continue;
    rows_[{part->get<size_t>(), kv->get<std::string>()}] = row;
  }
}

void RowLog::resume(Json identity, size_t n_rows) {
  n_rows_ = n_rows;
  identity_ = {{"command_line", command_line()}, {"version", kVersion}, {"commit", kCommit}};
  identity_.update(identity);
  identity_ = Json::parse(json_text(identity_, -1));  // as the file has it
  const bool same = identity_ == old_identity_;
  if (!same || old_is_complete_) {
    if (!rows_.empty() && !old_is_complete_)
      fmt::print(stderr, "mikv: {} has {} rows of another command, model or input: starting anew\n", path_,
                 rows_.size());
    rows_.clear();
    n_good_bytes_ = 0;
  } else if (!rows_.empty()) {
    fmt::print(stderr, "mikv: resuming: {} of {} rows are there, in {}\n", rows_.size(), n_rows_, path_);
  }
}

void RowLog::write_line(const Json& line) {
  if (path_.empty()) return;
  const auto put = [&](const Json& json) {
    const std::string text = json_text(json, -1) + "\n";
    return std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size();
  };
  bool written = true;
  if (!file_) {
    std::error_code failure;
    if (n_good_bytes_ > 0) fs::resize_file(path_, n_good_bytes_, failure);
    file_.reset(std::fopen(path_.c_str(), n_good_bytes_ > 0 ? "ab" : "wb"));
    written = file_ && !failure && (n_good_bytes_ > 0 || put({{kIdentity, identity_}}));
  }
  if (!written || !put(line) || std::fflush(file_.get()) != 0)
    throw UserError(
        fmt::format("cannot write {}: {}; free some space or choose another folder", path_, std::strerror(errno)));
}

void RowLog::add(size_t part, const std::string& kv, Json values) {
  Json row = {{"part", part}, {"kv", kv}};
  row.update(values);
  write_line(row);
  rows_[{part, kv}] = std::move(row);
}

void RowLog::finish() { write_line({{"complete", true}}); }

std::string RowLog::hint() const {
  if (path_.empty() || rows_.empty()) return {};
  return fmt::format("; {} of {} rows are in {}, and the same command resumes from there", rows_.size(), n_rows_,
                     path_);
}

void RowLog::say_interrupted() const {
  if (path_.empty() || rows_.empty()) return;
  fmt::print(stderr, "mikv: interrupted{}\n", hint());
}

std::string text_fingerprint(const std::string& text) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return fmt::format("{} bytes, {:016x}", text.size(), hash);
}

}  // namespace mikv::cli
