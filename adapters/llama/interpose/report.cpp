#include "interpose/report.hpp"

#include <charconv>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <span>
#include <vector>

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
      {"kv_staged_bytes", "bytes of tokens that are not compressed yet", false, double(usage.staged)},
      {"kv_staged_tokens", "tokens not compressed yet, summed over layers and KV heads", false,
       double(usage.n_staged_tokens)},
      {"kv_hi_tokens", "tokens in high precision, summed over layers and KV heads", false, double(usage.n_hi_tokens)},
      {"kv_lo_tokens", "tokens in low precision, summed over layers and KV heads", false, double(usage.n_lo_tokens)},
      {"kv_evicted_tokens", "tokens without K and V, summed over layers and KV heads", false,
       double(usage.n_evicted_tokens)},
      {"kv_contexts", "contexts whose KV cache is in mikv", false, double(totals.n_contexts)},
      {"kv_steps_total", "batches that were processed", true, double(totals.figures.n_steps)},
      {"kv_lowered_total", "times that the cache was made smaller to stay within the budget", true,
       double(totals.figures.n_concessions)},
      {"kv_refused_total", "batches that did not fit the budget", true, double(totals.figures.n_refused)}};
}

std::string number(double value) {
  char text[40];  // not by printf, whose decimal point depends on the program's locale
  const int n_decimals = value == double(int64_t(value)) ? 0 : 4;
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, n_decimals).ptr};
}

std::string prometheus() {
  std::string text;
  for (const Figure& f : figures(Registry::get().totals())) {
    const std::string name = std::string("mikv_") + f.name;
    text += "# HELP " + name + " " + f.help + "\n# TYPE " + name + (f.counts ? " counter\n" : " gauge\n") + name + " " +
            number(f.value) + "\n";
  }
  return text;
}

std::string json() {
  const Registry::Totals totals = Registry::get().totals();
  std::string text = "{\n  \"spec\": \"" + totals.spec + "\"";
  for (const Figure& f : figures(totals)) text += ",\n  \"" + std::string(f.name) + "\": " + number(f.value);
  return text + "\n}\n";
}

}  // namespace

void write_report(const std::string& file, bool now) {
  static std::mutex mutex;
  static std::chrono::steady_clock::time_point written;
  const std::lock_guard lock(mutex);
  const auto time = std::chrono::steady_clock::now();
  if (!now && time - written < std::chrono::seconds(1)) return;
  written = time;
  const std::string text = file.ends_with(".prom") ? prometheus() : json();
  const Status status = write_file(file, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  if (status) return;
  static const bool once = std::fprintf(stderr, "mikv: the report: %s\n", status.message().c_str()) >= 0;
  (void)once;
}

}  // namespace mikv::llama
