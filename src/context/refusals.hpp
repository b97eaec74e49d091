// Refusals: counts requests that did not fit. Engines try a refused step again with fewer tokens, down to one; what
// fits in the end was not refused. A request is counted once it is known to be given up: with the next larger step at
// the latest.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mikv::context {

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
  uint64_t n_requests() const { return n_requests_; }
  /// 1 if the last step was refused and may be tried again.
  uint64_t n_undecided() const { return n_refused_tokens_ > 0; }

 private:
  void give_up_if(bool given_up) {
    if (!given_up || n_refused_tokens_ == 0) return;
    ++n_requests_;
    n_refused_tokens_ = 0;
  }

  uint64_t n_requests_ = 0;
  size_t n_refused_tokens_ = 0;  // of the last step, if it was refused and may be tried again
};

}  // namespace mikv::context
