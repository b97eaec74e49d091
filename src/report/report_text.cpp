// The figures of a report, each with its name and meaning, in two formats.
#include <charconv>
#include <string>
#include <vector>

#include "mikv/report.hpp"
#include "report/process.hpp"

namespace mikv {
namespace {

struct Figure {
  const char* name;
  const char* help;
  bool counts;  // only ever grows
  double value;
};

std::vector<Figure> rows(const ReportFigures& sums) {
  const MemoryUsage& usage = sums.usage;
  return {
      {"kv_bytes", "bytes of K and V with all that belongs to them", false, double(usage.total())},
      {"kv_peak_bytes", "the most bytes there ever were, transient ones included", false, double(sums.peak_bytes)},
      {"kv_budget_bytes", "most bytes that may be held, 0 without a limit", false, double(sums.budget_bytes)},
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
      {"kv_contexts", "contexts whose KV cache is in mikv", false, double(sums.n_contexts)},
      {"kv_steps_total", "batches that were processed", true, double(sums.n_steps)},
      {"kv_lowered_sequences", "sequences that hold text which the budget made smaller than was asked for", false,
       double(sums.n_lowered_sequences)},
      {"kv_lowered_total", "times that the cache was made smaller to stay within the budget", true,
       double(sums.n_lowered)},
      {"kv_refused_total", "requests that did not fit the budget", true, double(sums.n_refused_requests)}};
}

std::string number(double value) {
  char text[40];  // not by printf, whose decimal point depends on the program's locale
  const int n_decimals = value == double(int64_t(value)) ? 0 : 4;
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, n_decimals).ptr};
}

// As a string of JSON. A spec has no control characters.
std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += c;
  }
  return json + '"';
}

}  // namespace

std::string report_prometheus(const ReportFigures& figures) {
  const auto& [id, started] = report::this_process();
  std::string text = "# mikv process " + std::to_string(id) + " process_started " + std::to_string(started) + "\n";
  for (const Figure& f : rows(figures)) {
    const std::string name = std::string("mikv_") + f.name;
    text += "# HELP " + name + " " + f.help + "\n# TYPE " + name + (f.counts ? " counter\n" : " gauge\n") + name + " " +
            number(f.value) + "\n";
  }
  return text;
}

std::string report_json(const ReportFigures& figures) {
  const auto& [id, started] = report::this_process();
  std::string text = "{\n  \"process\": " + std::to_string(id) +
                     ",\n  \"process_started\": " + std::to_string(started) + ",\n  \"spec\": " + quoted(figures.spec);
  for (const Figure& f : rows(figures)) text += ",\n  \"" + std::string(f.name) + "\": " + number(f.value);
  return text + "\n}\n";
}

}  // namespace mikv
