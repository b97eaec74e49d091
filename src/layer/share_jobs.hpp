// Jobs that do not depend on each other, shared by threads that last as long as the call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace mikv {

/// Calls work(next) on this thread and on up to n_threads - 1 others, no more than there are jobs or the system gives,
/// and returns when all have returned. next() gives each job's number below n_jobs to one caller, and then numbers that
/// are no less. work must not throw.
template <typename Work>
void share_jobs(size_t n_jobs, uint64_t n_threads, const Work& work) {
  std::atomic<size_t> n_taken{0};
  const auto next = [&] { return n_taken.fetch_add(1); };
  std::vector<std::jthread> helpers;  // the last to begin, the first to end
  try {
    for (uint64_t t = 1; t < n_threads && t < n_jobs; ++t) helpers.emplace_back([&] { work(next); });
  } catch (const std::exception&) {  // no memory, or no more threads: those that there are do all jobs
  }
  work(next);
}

}  // namespace mikv
