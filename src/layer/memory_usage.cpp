// Byte accounting: every byte that is allocated for live data is counted, in one category.
#include "layer/layer_impl.hpp"

namespace mikv {
namespace {

void add_tier(const tier::Tier& tier, uint64_t MemoryUsage::*codes, MemoryUsage& usage) {
  const codec::BlockLayout& layout = tier.layout();
  const uint64_t n = tier.size();
  const uint64_t code_bytes = n * layout.code_bytes_per_token(), scale_bytes = n * layout.scale_bytes_per_token();
  const uint64_t id_bytes = n * layout.id_bytes, score_bytes = layout.scored ? n * 2 * sizeof(uint32_t) : 0;
  usage.*codes += code_bytes;
  usage.scales += scale_bytes;
  usage.ids += id_bytes;
  usage.scores += score_bytes;
  usage.slack += tier.allocated_bytes() - code_bytes - scale_bytes - id_bytes - score_bytes;
}

}  // namespace

MemoryUsage& MemoryUsage::operator+=(const MemoryUsage& other) {
  for (const auto field : {&MemoryUsage::staged, &MemoryUsage::hi, &MemoryUsage::lo, &MemoryUsage::scales,
                           &MemoryUsage::ids, &MemoryUsage::scores, &MemoryUsage::calibration, &MemoryUsage::slack,
                           &MemoryUsage::n_elements, &MemoryUsage::n_staged_tokens, &MemoryUsage::n_hi_tokens,
                           &MemoryUsage::n_lo_tokens, &MemoryUsage::n_evicted_tokens, &MemoryUsage::n_tokens}) {
    this->*field += other.*field;
  }
  return *this;
}

MemoryUsage LayerCache::memory_usage() const {
  MemoryUsage usage;
  for (const auto& segment : impl_->segments) {
    if (!segment) continue;
    usage.ids += segment->live().bytes();
    usage.calibration += segment->own_bytes() - segment->live().bytes();
    for (const tier::HeadStore& head : segment->heads()) {
      add_tier(head.staged, &MemoryUsage::staged, usage);
      add_tier(head.hi, &MemoryUsage::hi, usage);
      add_tier(head.lo, &MemoryUsage::lo, usage);
      usage.calibration += head.calibration_bytes();
      usage.n_staged_tokens += head.staged.size();
      usage.n_hi_tokens += head.hi.size();
      usage.n_lo_tokens += head.lo.size();
      usage.n_evicted_tokens += segment->n_live() - head.stored();
    }
    const uint64_t per_token = uint64_t{impl_->shape.n_kv_heads} * (impl_->shape.head_dim_k + impl_->shape.head_dim_v);
    usage.n_elements += segment->n_live() * per_token;
  }
  return usage;
}

}  // namespace mikv
