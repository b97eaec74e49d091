#include <algorithm>

#include "mikv/cache.hpp"

namespace mikv {

uint32_t streamed_tokens(const Spec& spec, uint64_t max_cells, uint64_t n_compressed) {
  const double lo_bits = spec.mixed() ? spec.bits : format_bits(spec.lo);
  const double bits = spec.keep * format_bits(spec.hi) + (1.0 - spec.keep) * lo_bits;
  const double room = double(std::min<uint64_t>(max_cells / 2, kStreamedTokens));
  return uint32_t(
      std::max<double>(kFirstStreamedTokens, room - double(n_compressed) * bits / format_bits(Format::f16)));
}

bool is_full(const LayerCache& cache, SegmentId segment, uint32_t n_tokens) {
  const uint64_t n_cells = cache.n_cells(segment);
  return cache.spec().mixed() && n_cells >= n_tokens && cache.n_staged(segment) < n_cells;
}

}  // namespace mikv
