#include "interpose/report.hpp"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "binding.hpp"
#include "interpose/registry.hpp"
#include "mikv/atomic_file.hpp"

namespace mikv::llama {
namespace {

struct Figure {
  const char* name;
  const char* help;
  bool counts;  // only ever grows
  double value;
};

std::vector<Figure> figures(const Registry::Totals& totals) {
  const MemoryUsage& usage = totals.usage;
  return {
      {"kv_bytes", "bytes of K and V with all that belongs to them", false, double(usage.total())},
      {"kv_peak_bytes", "the most bytes there ever were, transient ones included", false, double(totals.peak_bytes)},
      {"kv_budget_bytes", "--kv-budget, 0 without", false, double(totals.budget)},
      {"kv_f16_bytes", "bytes that the same tokens would take in f16", false, 2.0 * double(usage.n_elements)},
      {"kv_bits_per_element", "bits per element, all-in", false, usage.bits_per_element()},
      {"kv_tokens", "tokens of the layer that holds most", false, double(usage.n_tokens)},
      {"kv_staged_bytes", "bytes of tokens that are not compressed yet", false, double(usage.staged)},
      {"kv_staged_tokens", "tokens not compressed yet, summed over layers and KV heads", false,
       double(usage.n_staged_tokens)},
      {"kv_hi_tokens", "tokens in high precision, summed over layers and KV heads", false, double(usage.n_hi_tokens)},
      {"kv_lo_tokens", "tokens in low precision, summed over layers and KV heads", false, double(usage.n_lo_tokens)},
      {"kv_evicted_tokens", "tokens without K and V, summed over layers and KV heads", false,
       double(usage.n_evicted_tokens)},
      {"kv_contexts", "contexts whose KV cache is in mikv", false, double(totals.n_contexts)},
      {"kv_steps_total", "batches that were processed", true, double(totals.figures.n_steps)},
      {"kv_lowered_sequences", "sequences that hold text which the budget made smaller than was asked for", false,
       double(totals.n_lowered_sequences)},
      {"kv_lowered_total", "times that the cache was made smaller to stay within the budget", true,
       double(totals.figures.n_concessions)},
      {"kv_refused_total", "requests that did not fit the budget", true, double(totals.figures.n_refused)}};
}

std::string number(double value) {
  char text[40];  // not by printf, whose decimal point depends on the program's locale
  const int n_decimals = value == double(int64_t(value)) ? 0 : 4;
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, n_decimals).ptr};
}

// ---------------------------------------------------------------- whose file it is

// A process by its number and the time that it started at, in ticks since the machine did: numbers are used again.
struct Process {
  uint64_t id = 0, started = 0;
  bool operator==(const Process&) const = default;
};

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Process process_of(uint64_t id) {
  const std::string stat = content_of("/proc/" + std::to_string(id) + "/stat");
  size_t at = stat.rfind(')');  // behind the program's name comes field 3
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  Process process{id, 0};
  if (at != std::string::npos) std::from_chars(&stat[at] + 1, stat.data() + stat.size(), process.started);
  return process;
}

const Process& this_process() {
  static const Process process = process_of(uint64_t(getpid()));
  return process;
}

uint64_t number_behind(std::string_view text, std::string_view word) {
  size_t at = text.find(word);
  if (at == std::string_view::npos) return 0;
  at = text.find_first_of("0123456789", at);
  uint64_t value = 0;
  if (at != std::string_view::npos) std::from_chars(text.data() + at, text.data() + text.size(), value);
  return value;
}

// The process whose report the file is; 0 if nobody's, or of one that has ended.
uint64_t living_owner(const std::string& file) {
  const std::string text = content_of(file);
  const Process owner{number_behind(text, "process"), number_behind(text, "process_started")};
  return owner.id && owner.started && process_of(owner.id) == owner ? owner.id : 0;
}

std::string name_of_ours(const std::string& file) {
  const size_t slash = file.rfind('/'), dot = file.rfind('.');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1) && dot > 0;
  const size_t at = has_ending ? dot : file.size();
  return file.substr(0, at) + "." + std::to_string(getpid()) + file.substr(at);
}

// ---------------------------------------------------------------- the file

std::string prometheus() {
  const auto& [id, started] = this_process();
  std::string text = "# mikv process " + std::to_string(id) + " process_started " + std::to_string(started) + "\n";
  for (const Figure& f : figures(Registry::get().totals())) {
    const std::string name = std::string("mikv_") + f.name;
    text += "# HELP " + name + " " + f.help + "\n# TYPE " + name + (f.counts ? " counter\n" : " gauge\n") + name + " " +
            number(f.value) + "\n";
  }
  return text;
}

std::string json() {
  const Registry::Totals totals = Registry::get().totals();
  std::string text = "{\n  \"process\": " + std::to_string(this_process().id) +
                     ",\n  \"process_started\": " + std::to_string(this_process().started) + ",\n  \"spec\": \"" +
                     totals.spec + "\"";
  for (const Figure& f : figures(totals)) text += ",\n  \"" + std::string(f.name) + "\": " + number(f.value);
  return text + "\n}\n";
}

constexpr std::chrono::seconds kBetweenWrites{1};

// Writes on a thread of its own: syncing a file takes a disk's time, and a change that nothing follows is written too.
// Never destroyed, because that thread lives as long as the process.
class Writer {
 public:
  static Writer& get() {
    static Writer* const writer = new Writer;
    return *writer;
  }

  void use(const std::string& file) {
    const std::lock_guard lock(mutex_);
    if (asked_ != file) asked_ = file_ = file;
  }

  void changed() {
    const std::lock_guard lock(mutex_);
    if (file_.empty()) return;
    if (!running_) start();
    changed_ = true;
    woken_.notify_one();
  }

  void write() {
    const std::lock_guard lock(mutex_);
    write_locked();
  }

 private:
  // The program's signals are for its own threads.
  void start() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { run(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    running_ = true;
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      woken_.wait(lock, [this] { return changed_; });
      const auto due = written_ + kBetweenWrites;
      while (std::chrono::steady_clock::now() < due) woken_.wait_until(lock, due);
      if (changed_) write_locked();
    }
  }

  void write_locked() {
    changed_ = false;
    written_ = std::chrono::steady_clock::now();
    const uint64_t owner = living_owner(file_);
    if (owner && owner != this_process().id) {
      const std::string ours = name_of_ours(asked_);
      if (ours != file_) {
        std::fprintf(stderr, "mikv: the report: process %llu writes %s; this one writes %s\n",
                     static_cast<unsigned long long>(owner), file_.c_str(), ours.c_str());
      }
      file_ = ours;
    }
    const std::string text = file_.ends_with(".prom") ? prometheus() : json();
    const Status status = write_file(file_, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    if (status) {
      chmod(file_.c_str(), S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);  // a collector may be another user
    } else if (!said_) {
      said_ = true;
      std::fprintf(stderr, "mikv: the report: %s\n", status.message().c_str());
    }
  }

  std::mutex mutex_;
  std::condition_variable woken_;
  std::string asked_, file_;
  bool running_ = false, changed_ = false, said_ = false;
  std::chrono::steady_clock::time_point written_;
};

}  // namespace

void report(const Binding& binding, Occasion occasion) noexcept {
  if (binding.report_file().empty()) return;
  try {
    if (!Registry::get().publish(binding, occasion)) return;
    Writer::get().use(binding.report_file());
    occasion == Occasion::last ? Writer::get().write() : Writer::get().changed();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mikv: the report: %s\n", error.what());
  }
}

void report_changed() noexcept {
  try {
    Writer::get().changed();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mikv: the report: %s\n", error.what());
  }
}

}  // namespace mikv::llama
