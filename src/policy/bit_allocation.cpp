#include "policy/bit_allocation.hpp"

#include <algorithm>

#include "codec/trellis.hpp"

namespace mikv::policy {

static_assert(kMaxTileBits == codec::kMaxTileBits);

TileBits allocate_bits(std::span<const double> harm_k, std::span<const double> harm_v, uint32_t total) {
  std::vector<double> harm(harm_k.begin(), harm_k.end());
  harm.insert(harm.end(), harm_v.begin(), harm_v.end());
  std::vector<uint8_t> bits(harm.size(), kMinTileBits);
  const auto gain = [&](size_t tile) {
    if (bits[tile] == kMaxTileBits) return -1.0;
    const codec::Ring ring = tile < harm_k.size() ? codec::Ring::key : codec::Ring::value;
    return harm[tile] * (codec::trellis_error(ring, bits[tile]) - codec::trellis_error(ring, bits[tile] + 1u));
  };
  const size_t most = kMaxTileBits * harm.size();
  for (size_t used = kMinTileBits * harm.size(); used < std::min<size_t>(total, most); ++used) {
    size_t best = 0;
    for (size_t tile = 1; tile < harm.size(); ++tile) {
      if (gain(tile) > gain(best)) best = tile;
    }
    ++bits[best];
  }
  const auto first_v = bits.begin() + std::ptrdiff_t(harm_k.size());
  return {{bits.begin(), first_v}, {first_v, bits.end()}};
}

}  // namespace mikv::policy
