#include <algorithm>

#include "attention/kernel_api.hpp"

namespace mikv::attention {

std::vector<TilePair> tile_pairs(uint32_t dim, uint32_t group, uint32_t first) {
  std::vector<TilePair> pairs;
  for (uint32_t g = 0; g < (dim - first) / group; ++g) {
    const uint32_t begin = first + g * group, end = begin + group;
    for (uint32_t tile = begin / kLanes; tile * kLanes < end; ++tile) {
      const uint32_t from = std::max(begin, tile * kLanes), last = std::min(end, (tile + 1) * kLanes);
      pairs.push_back({uint16_t(tile), uint16_t(g), uint16_t(from - tile * kLanes), uint16_t(last - tile * kLanes)});
    }
  }
  return pairs;
}

}  // namespace mikv::attention
