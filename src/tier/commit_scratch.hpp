// CommitScratch: what compressing a head needs while it does.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/block.hpp"

namespace mikv::tier {

/// Working memory of commit(), kept between calls so that a generation step allocates nothing.
struct CommitScratch {
  std::vector<float> scores, k, v;
  std::vector<float> rows_k, rows_v;  ///< staged tokens of a block
  std::vector<float> lo_k, lo_v;      ///< tokens that wait to be encoded together
  uint32_t n_lo = 0;                  ///< of these
  std::vector<uint32_t> arrivals, victims, policy;
  std::vector<uint8_t> staged_victim;

  /// Room for the rows of a block.
  void resize_rows(uint32_t dim_k, uint32_t dim_v) {
    for (auto* rows : {&rows_k, &lo_k}) rows->resize(size_t{codec::kBlockTokens} * dim_k);
    for (auto* rows : {&rows_v, &lo_v}) rows->resize(size_t{codec::kBlockTokens} * dim_v);
  }
};

}  // namespace mikv::tier
