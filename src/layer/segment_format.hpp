// A segment as bytes: its tiers as they are stored, and its transform. Saving and loading lose nothing.
//
//   u32 arrivals               put order of the next token
//   u64 live[(n_cells+63)/64]  bit c % 64 of word c / 64: cell c is in the segment
//   for each KV head:
//     u8  flags: 1 frozen; 2 queries were sampled; 4 it continues other segments; 8 staged in bytes;
//         16 staged keys were shifted to other positions; 32 picked a pattern; 64 bits were shared;
//         128 errors were weighed
//     u32 tokens of those segments, if flag 4 is set
//     u8  the pattern, if flag 32 is set
//     f64 bits more than the spec says, if flag 64 is set
//     f64 error, f64 output, if flag 128 is set (policy/error_weight.hpp)
//     axes of staged keys, if flag 8 is set
//     u64 queries              number of queries tallied so far
//     arrays of the queries' largest magnitudes f32 and squares u64
//     if queries were sampled: arrays arrivals u32, queries u16 of 8 or 16 tokens (tier/query_sample.hpp)
//     axes of keys, axes of values: arrays centre, balancer, order, turns (u16); u8 hadamard
//     arrays bits u8, weights f32 of the lo tier's tiles of K, then of V (mixed bits only; else empty)
//     tiers staged, hi, lo: u32 tokens, then whole blocks (codec/block.hpp) whose cell ids count as in `live`
//   an array is u32 length, then its values
//
// Cells are numbered by their place in the list that the segment is saved for. Loading may give them other numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "layer/layer_cache.hpp"
#include "tier/segment_store.hpp"

namespace mikv::session {

/// Appends to `to` what `segment` holds of cells[0], cells[1], ... May throw std::bad_alloc.
void save_segment(const tier::SegmentStore& segment, std::span<const uint32_t> cells, std::vector<uint8_t>& to);

/// What a segment of a layer must match.
struct SegmentContract {
  const LayerShape& shape;
  const Spec& spec;  ///< that it was saved under
  std::shared_ptr<const tier::Layouts> layouts;
  MemoryAccount& account;
};

/// Reads a segment whose cells are numbered 0..n_cells-1. Bytes may be hostile. Errors: damaged_data. May throw
/// std::bad_alloc.
Result<std::unique_ptr<tier::SegmentStore>> load_segment(std::span<const uint8_t> bytes, uint32_t n_cells,
                                                         const SegmentContract& contract);

}  // namespace mikv::session
