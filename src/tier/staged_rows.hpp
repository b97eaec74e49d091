// for_each_staged: the staged tokens of a head, decoded a block at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "codec/block.hpp"
#include "tier/commit_scratch.hpp"
#include "tier/head_store.hpp"

namespace mikv::tier {

/// Calls visit(slot, k, v) for each staged token from slot `from` on, in the engine's coordinates. The rows may be
/// changed.
template <typename Visit>
void for_each_staged(const HeadStore& head, CommitScratch& scratch, Visit visit, uint32_t from = 0) {
  const Tier& staged = head.staged;
  const uint32_t dim_k = staged.layout().dim_k, dim_v = staged.layout().dim_v;
  scratch.resize_rows(dim_k, dim_v);
  for (uint32_t first = from - Tier::lane_of(from); first < staged.size(); first += codec::kBlockTokens) {
    const uint32_t n = std::min(codec::kBlockTokens, staged.size() - first);
    float *k = scratch.rows_k.data(), *v = scratch.rows_v.data();
    if (head.staged_in_bytes()) {
      for (uint32_t i = 0; i < n; ++i) {
        codec::decode_token(staged.block_of(first), staged.layout(), i, k + i * dim_k, v + i * dim_v);
        head.staged_transform.key.from_tier({k + i * dim_k, dim_k});
      }
    } else {
      codec::decode_f16(staged.block_of(first), staged.layout(), n, k, v);
    }
    for (uint32_t i = 0; i < n; ++i) {
      if (first + i >= from) visit(first + i, k + i * dim_k, v + i * dim_v);
    }
  }
}

}  // namespace mikv::tier
