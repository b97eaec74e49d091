// The report of a drop-in (--kv-report): size and content of the KV cache, kept up to date in a file.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mikv::llama {

class Binding;

/// Counts requests that did not fit. Programs try a refused step again with less, down to one token; what fits in the
/// end was not refused. A request is counted once it is known to be given up: with the next larger step at the latest.
class Refusals {
 public:
  void refused(size_t n_tokens) {
    give_up_if(n_tokens > n_refused_tokens_);
    n_refused_tokens_ = n_tokens;
    give_up_if(n_tokens <= 1);
  }
  void fitted(size_t n_tokens) {
    give_up_if(n_tokens > n_refused_tokens_);
    n_refused_tokens_ = 0;
  }
  /// With one that may be tried again.
  uint64_t n_with_last() const { return n_requests_ + (n_refused_tokens_ > 0); }
  uint64_t n_requests() const { return n_requests_; }

 private:
  void give_up_if(bool given_up) {
    if (!given_up || n_refused_tokens_ == 0) return;
    ++n_requests_;
    n_refused_tokens_ = 0;
  }

  uint64_t n_requests_ = 0;
  size_t n_refused_tokens_ = 0;  // of the last step, if it was refused and may be tried again
};

/// What a report follows. Steps are many: some are left out where counting would take more than a hundredth of the
/// time. `last`: the context ends, and the file is written at once.
enum class Occasion { step, call, last };

/// Publishes the figures of a context, on a thread that may use it, and lets the file of its drop-in follow within a
/// second. Does nothing without a file. The file has the sums
/// over all contexts: JSON, or, if its name ends with .prom, the text format of Prometheus (for the textfile collector
/// of its node exporter). It is replaced as a whole. If another process that lives writes a file of that name, this
/// one's number goes into the name: FILE.PID.json.
void report(const Binding& binding, Occasion occasion = Occasion::call) noexcept;
/// What was published has changed.
void report_changed() noexcept;

}  // namespace mikv::llama
