#include "report/file_writer.hpp"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <exception>
#include <utility>

#include "mikv/atomic_file.hpp"
#include "report/process.hpp"

namespace mikv::report {
namespace {

constexpr std::chrono::milliseconds kBetweenWrites{100};

// "kv.json" -> "kv.1234.json"
std::string name_of_ours(const std::string& file) {
  const size_t slash = file.rfind('/'), dot = file.rfind('.');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1) && dot > 0;
  const size_t at = has_ending ? dot : file.size();
  return file.substr(0, at) + "." + std::to_string(getpid()) + file.substr(at);
}

}  // namespace

FileWriter::FileWriter(std::string path, std::function<std::string()> text, Log log)
    : asked_(std::move(path)), file_(asked_), text_(std::move(text)), log_(std::move(log)) {}

FileWriter::~FileWriter() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    woken_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void FileWriter::changed() {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) start();
  changed_ = true;
  woken_.notify_one();
}

void FileWriter::write() {
  const std::lock_guard lock(mutex_);
  write_locked();
}

// The program's signals are for its own threads.
void FileWriter::start() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void FileWriter::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    woken_.wait(lock, [this] { return changed_ || ends_; });
    woken_.wait_until(lock, written_ + kBetweenWrites, [this] { return ends_; });
    try {
      if (changed_) write_locked();
    } catch (const std::exception&) {  // no memory: the next change is written
    }
    if (ends_) return;
  }
}

void FileWriter::write_locked() {
  changed_ = false;
  written_ = std::chrono::steady_clock::now();
  const uint64_t owner = living_owner(file_);
  if (owner && owner != this_process().id) {
    const std::string ours = name_of_ours(asked_);
    if (ours != file_ && log_) {
      log_("the report: process " + std::to_string(owner) + " writes " + file_ + "; this one writes " + ours);
    }
    file_ = ours;
  }
  const std::string text = text_();
  const Status status = write_file(file_, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, false);
  if (status) {
    chmod(file_.c_str(), S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);  // a collector may be another user
  } else if (!said_) {
    said_ = true;
    if (log_) log_("the report: " + status.message());
  }
}

}  // namespace mikv::report
