// What a saved context says beside its segments: whose state it is, what the engine itself keeps of it, and which
// sequences see which segments. Readers check everything; their errors say which part is damaged.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mikv/context.hpp"
#include "mikv/result.hpp"

namespace mikv::session {

/// What must be the same for a state to mean the same.
struct Identity {
  std::string model;         ///< in words
  uint64_t fingerprint = 0;  ///< of everything about the model and its options
  std::string spec;

  std::vector<uint8_t> bytes() const;
  static Result<Identity> read(std::span<const uint8_t> bytes);
};

/// EngineState without its cells: size, holes, words. The cells of segments follow from the engine's loading it.
std::vector<uint8_t> engine_bytes(const EngineState& state);
Result<EngineState> read_engine(std::span<const uint8_t> bytes);

inline constexpr uint32_t kNoSegment = UINT32_MAX;
/// No context has more segments.
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
