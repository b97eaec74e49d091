// CommitScratch: what compressing a head needs while it does.
#pragma once

#include <cstdint>
#include <vector>

namespace mikv::tier {

/// Working memory of commit(), kept between calls so that a generation step allocates nothing.
struct CommitScratch {
  std::vector<float> scores, k, v;
  std::vector<float> rows_k, rows_v;  ///< staged tokens of a block
  std::vector<float> lo_k, lo_v;      ///< tokens that wait to be encoded together
  uint32_t n_lo = 0;                  ///< of these
  std::vector<uint32_t> arrivals, victims, policy;
  std::vector<uint8_t> staged_victim;
};

}  // namespace mikv::tier
