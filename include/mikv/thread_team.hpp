// A fixed set of threads that run the same function together, as an engine's thread pool does.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "mikv/export.h"

namespace mikv {

/// Used by one thread at a time. A process that forks has no workers in the child: a team must not be used there.
class MIKV_API ThreadTeam {
 public:
  /// Throws std::system_error if the system gives no more threads.
  explicit ThreadTeam(uint32_t n_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  uint32_t size() const { return n_threads_; }

  /// Calls work(thread) on all threads, the caller's being number 0, and returns when all have returned. `work` must
  /// not throw.
  void run(const std::function<void(uint32_t)>& work);

  /// To be called by all threads inside work(): none continues before the last has come. Spins, as layers take
  /// microseconds.
  void barrier();

 private:
  void serve(uint32_t thread);
  void close();

  uint32_t n_threads_;
  const std::function<void(uint32_t)>* work_ = nullptr;
  std::atomic<uint64_t> round_ = 0;  ///< counts runs; workers wait for it to change
  std::atomic<bool> closing_ = false;
  std::atomic<uint32_t> n_arrived_ = 0;
  std::atomic<uint64_t> phase_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace mikv
