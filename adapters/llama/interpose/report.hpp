// The report of a drop-in (--kv-report): size and content of the KV cache, kept up to date in a file.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mikv::llama {

class Binding;

/// Counts requests that did not fit. Programs try a refused step again with less, which is the same request.
class Refusals {
 public:
  void refused(size_t n_tokens) {
    if (n_last_ == 0 || n_tokens >= n_last_) ++n_requests_;
    n_last_ = n_tokens;
  }
  void fitted() { n_last_ = 0; }
  uint64_t n_requests() const { return n_requests_; }

 private:
  uint64_t n_requests_ = 0;
  size_t n_last_ = 0;
};

/// Publishes the figures of a context, on a thread that may use it, and lets the file of its drop-in follow within a
/// second, or at once if `now`. Does nothing without a file. The file has the sums over all contexts: JSON, or, if its
/// name ends with .prom, the text format of Prometheus (for the textfile collector of its node exporter). It is
/// replaced as a whole. If another process that lives writes a file of that name, this one's number goes into the name:
/// FILE.PID.json.
void report(const Binding& binding, bool now = false) noexcept;
/// What was published has changed.
void report_changed() noexcept;

}  // namespace mikv::llama
