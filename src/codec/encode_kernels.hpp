// Encoding of many tokens at once into mixed bits: each SIMD lane is a token. Compiled once for each SIMD target; all
// of them give the same bits as Axes::to_tier() and quantise_trellis() do for one token after the other.
//
//   rows [token][channel]  ->  columns [channel][16 tokens]  ->  Axes  ->  scales, rings (codec/trellis.hpp)  ->  codes
//
// A generation step demotes one token per head, for which the lanes of quantise_trellis() are the states of the search.
// A prompt has thousands: with tokens in the lanes the search has no shuffles, and no width of a ring leaves lanes
// idle.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "codec/block.hpp"
#include "codec/transform.hpp"
#include "codec/trellis.hpp"

namespace mikv::codec {

/// Keys or values of some tokens, and where they go.
struct EncodeJob {
  Ring ring;
  const Axes* axes;      ///< of the tier
  const TileTable* row;  ///< of the tier's layout
  const float* values;   ///< [n][dim], in the engine's coordinates
  uint32_t n, dim;       ///< n: 1 to 16
  uint8_t* codes;        ///< [n][tiles_of(dim) * 16]
  uint8_t* scales;       ///< [n] (codec/scale8.hpp)
};

struct EncodeKernels {
  std::string_view name;  ///< of the SIMD target, as attention names it
  bool faster;            ///< than one token after the other; without SIMD it is the slower way to the same bits
  void (*encode)(const EncodeJob& job);
};

/// Those that this machine can run, best first.
const std::vector<EncodeKernels>& all_encode_kernels();
/// The best, or what MIKV_TARGET or set_encode_target() names.
const EncodeKernels& encode_kernels();
/// The best if there are none of that name: all give the same bits.
void set_encode_target(std::string_view name);

}  // namespace mikv::codec
