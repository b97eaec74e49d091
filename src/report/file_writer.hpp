// FileWriter: keeps a file up to date on a thread of its own, because a disk may be slow, and because a change that
// nothing follows is written too.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "mikv/context.hpp"

namespace mikv::report {

class FileWriter {
 public:
  /// text: makes the content of the file; called on any thread that calls, and on the writer's own.
  FileWriter(std::string path, std::function<std::string()> text, Log log);
  ~FileWriter();

  /// The file is written within a tenth of a second. Throws if there can be no thread.
  void changed();
  void write();

 private:
  void start();
  void run();
  void write_locked();

  std::mutex mutex_;
  std::condition_variable woken_;
  const std::string asked_;  ///< the path that was asked for
  std::string file_;         ///< the one that is written
  const std::function<std::string()> text_;
  const Log log_;
  bool changed_ = false, ends_ = false, said_ = false;
  std::chrono::steady_clock::time_point written_;
  std::thread thread_;
};

}  // namespace mikv::report
