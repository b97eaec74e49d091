#include "policy/bit_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mikv::policy {

TileBits allocate_bits(std::span<const double> harm_k, std::span<const double> harm_v, uint32_t total) {
  std::vector<double> harm(harm_k.begin(), harm_k.end());
  harm.insert(harm.end(), harm_v.begin(), harm_v.end());
  std::vector<uint8_t> bits(harm.size(), kMinTileBits);
  const auto more = [&](size_t tile) { return codec::next_tile_bits(bits[tile]) - bits[tile]; };
  const auto gain = [&](size_t tile) {  // of each bit more
    const codec::Ring ring = tile < harm_k.size() ? codec::Ring::key : codec::Ring::value;
    return harm[tile] * (codec::trellis_error(ring, bits[tile]) - codec::trellis_error(ring, bits[tile] + more(tile))) /
           more(tile);
  };
  for (size_t used = kMinTileBits * harm.size();;) {
    size_t best = harm.size();
    for (size_t tile = 0; tile < harm.size(); ++tile) {
      if (bits[tile] < kMaxTileBits && used + more(tile) <= total && (best == harm.size() || gain(tile) > gain(best)))
        best = tile;
    }
    if (best == harm.size()) break;
    used += more(best);
    bits[best] = uint8_t(codec::next_tile_bits(bits[best]));
  }
  const auto first_v = bits.begin() + std::ptrdiff_t(harm_k.size());
  return {{bits.begin(), first_v}, {first_v, bits.end()}};
}

std::vector<uint32_t> share_bits(std::span<const double> weights, double each, uint32_t n_tiles) {
  if (weights.empty()) return {};
  constexpr double kExponent = 0.7;  // errors of b bits shrink with 4^-b: bits follow 0.35 log2(weight)
  const double mean = std::accumulate(weights.begin(), weights.end(), 0.0) / double(weights.size());
  std::vector<double> gain;
  for (const double weight : weights)
    gain.push_back(mean > 0.0 ? std::pow(std::max(weight / mean, 1e-6), kExponent) : 1.0);
  const double lowest = kMinTileBits * n_tiles, highest = kMaxTileBits * n_tiles, shift = kMostMoreBits * n_tiles;
  each = std::clamp(each, lowest, highest);
  const auto least = uint32_t(std::max(lowest, std::ceil(each - shift))),
             most = uint32_t(std::min(highest, std::ceil(each + shift)));
  std::vector<uint32_t> bits(weights.size(), std::min(least, uint32_t(each)));
  const double step = std::pow(4.0, -1.0 / n_tiles);
  for (auto left = size_t(each * double(weights.size()) + 1e-6) - bits.front() * weights.size(); left > 0; --left) {
    size_t best = weights.size();
    for (size_t head = 0; head < weights.size(); ++head) {
      if (bits[head] < most && (best == weights.size() || gain[head] > gain[best])) best = head;
    }
    ++bits[best];
    gain[best] *= step;
  }
  return bits;
}

}  // namespace mikv::policy
