// Sections of a saved context beside its segments: the identity of model and spec, the engine's own part, and which
// sequences see which segments. Readers check everything; their errors name the damaged part.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mikv/context.hpp"
#include "mikv/result.hpp"

namespace mikv::session {

/// What must be equal for a state to mean the same.
struct Identity {
  std::string model;         ///< name for messages
  uint64_t fingerprint = 0;  ///< of everything about the model and its options
  std::string spec;          ///< as it was asked for

  std::vector<uint8_t> bytes() const;
  static Result<Identity> read(std::span<const uint8_t> bytes);
};

/// How a segment is held, at the beginning of its section: what it was saved from, and its spec. `segment` is the rest.
struct SegmentHeader {
  uint32_t stream = 0, n_cells = 0;  ///< of the saved context; of the layer's stream in the state
  std::string spec;                  ///< empty: as the identity says (version 1)

  void put(std::vector<uint8_t>& bytes) const;
  static Result<SegmentHeader> read(std::span<const uint8_t> bytes, uint32_t version,
                                    std::span<const uint8_t>& segment);
};

/// EngineState without its cells: size, holes, words. Loading it gives the cells of the segments.
std::vector<uint8_t> engine_bytes(const EngineState& state);
Result<EngineState> read_engine(std::span<const uint8_t> bytes);

inline constexpr uint32_t kNoSegment = UINT32_MAX;
/// The most segments of a context.
inline constexpr uint32_t kMaxSavedSegments = 1u << 12;

/// Which segments a saved sequence sees, by the segments' numbers in the state.
struct SavedSequence {
  uint32_t sequence = 0;
  uint32_t own = kNoSegment;  ///< where its next tokens go; one of `seen`
  std::vector<uint32_t> seen;
};

std::vector<uint8_t> sequence_bytes(std::span<const SavedSequence> sequences);
Result<std::vector<SavedSequence>> read_sequences(std::span<const uint8_t> bytes);

}  // namespace mikv::session
