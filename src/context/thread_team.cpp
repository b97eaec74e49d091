#include "mikv/thread_team.hpp"

namespace mikv {
namespace {

// About 0.1 ms of spinning; after it the core is offered to others, who may be what we wait for.
constexpr int kSpinsBeforeYield = 20000;

}  // namespace

ThreadTeam::ThreadTeam(uint32_t n_threads) : n_threads_(n_threads) {
  try {
    for (uint32_t thread = 1; thread < n_threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
  } catch (...) {
    close();
    throw;
  }
}

ThreadTeam::~ThreadTeam() { close(); }

void ThreadTeam::close() {
  closing_ = true;
  ++round_;
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::run(const std::function<void(uint32_t)>& work) {
  work_ = &work;
  ++round_;
  round_.notify_all();
  work(0);
  barrier();
}

void ThreadTeam::serve(uint32_t thread) {
  for (uint64_t seen = 0;;) {
    round_.wait(seen);
    seen = round_;
    if (closing_) return;
    (*work_)(thread);
    barrier();
  }
}

void ThreadTeam::barrier() {
  const uint64_t phase = phase_.load();
  if (n_arrived_.fetch_add(1) + 1 == n_threads_) {
    n_arrived_ = 0;
    ++phase_;
    return;
  }
  for (int spins = 0; phase_.load() == phase; ++spins) {
    if (spins >= kSpinsBeforeYield) std::this_thread::yield();
  }
}

}  // namespace mikv
