#include "busy_machine.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

namespace mikv::cli {
namespace {

constexpr int kSample_ms = 80;  // 8 ticks of the kernel's clock on each processor
constexpr double kQuiet = 0.7;

struct ProcessorTime {
  uint64_t idle = 0, total = 0;
};

/// First line of /proc/stat: "cpu user nice system idle iowait irq softirq steal ...", in ticks.
ProcessorTime processor_time() {
  std::ifstream stat("/proc/stat");
  std::string name;
  stat >> name;
  ProcessorTime time;
  uint64_t ticks = 0;
  for (int field = 0; field < 8 && stat >> ticks; ++field) {
    time.total += ticks;
    if (field == 3 || field == 4) time.idle += ticks;  // waiting for a disk is idle too
  }
  return time;
}

}  // namespace

double idle_share(int milliseconds) {
  const ProcessorTime before = processor_time();
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  const ProcessorTime after = processor_time();
  return after.total > before.total ? double(after.idle - before.idle) / double(after.total - before.total) : 1.0;
}

void sleep_instead_of_spin_if_busy(char** argv) {
  // Set by the user, or by us before the process was started again.
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  if (idle_share(kSample_ms) >= kQuiet) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);
  unsetenv("OMP_WAIT_POLICY");  // could not: go on as we are
}

}  // namespace mikv::cli
