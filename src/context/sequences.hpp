// Sequences: which segments of the cache hold the tokens of which sequence.
//
// A sequence puts its new tokens into a segment of its own, so that it has a share of hi and a centre of its own. It
// may see more segments: earlier ones of a long prompt (docs/adr/0014-segments-of-a-long-prompt.md), and those of a
// prefix that it shares (copy(), tokens of several sequences, a loaded state). A stream is a buffer of cells: one per
// sequence, or one for all.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "layer/layer_cache.hpp"
#include "mikv/context.hpp"

namespace mikv::context {

/// What the latest tokens of a sequence were.
enum class Reading : uint8_t {
  nothing,
  prompt,    ///< the beginning of a prompt
  ended,     ///< the end of one, or generated
  measured,  ///< a text whose probabilities were asked for
};

/// For a sequence that is not one of n_sequences.
Error no_sequence(SequenceId sequence, uint32_t n_sequences);

class Sequences {
 public:
  Sequences(uint32_t n_sequences, bool unified);

  uint32_t n_sequences() const { return uint32_t(seen_.size()); }
  bool unified() const { return unified_; }
  bool valid(SequenceId sequence) const { return sequence >= 0 && uint32_t(sequence) < n_sequences(); }
  uint32_t stream_of(SequenceId sequence) const { return unified_ ? 0 : uint32_t(sequence); }
  uint32_t n_streams() const { return unified_ ? 1 : n_sequences(); }

  /// The segment for new tokens of the sequence, made if there is none. kMaxSegments if no number is free.
  SegmentId segment_for_tokens(SequenceId sequence);
  /// A new segment, seen by the sequence. kMaxSegments if no number is free.
  SegmentId new_segment(SequenceId sequence, bool own);
  std::span<const SegmentId> seen_by(SequenceId sequence) const { return seen_[size_t(sequence)]; }
  SegmentId own(SequenceId sequence) const { return own_[size_t(sequence)]; }
  uint32_t stream_of_segment(SegmentId segment) const { return stream_of_segment_[segment]; }

  /// Lets the sequence see the segment, or makes it the sequence's own.
  void see(SequenceId sequence, SegmentId segment, bool own);
  bool seen_by_others(SegmentId segment, SequenceId sequence) const;
  void share(SequenceId from, SequenceId to);  ///< lets `to` see what `from` sees
  void forget(SequenceId sequence);            ///< the sequence sees no segments then
  Reading reading(SequenceId sequence) const { return reading_[size_t(sequence)]; }
  void set_reading(SequenceId sequence, Reading reading) { reading_[size_t(sequence)] = reading; }
  void clear();
  /// Calls f(segment) for every segment in use.
  void for_each_segment(const std::function<void(SegmentId)>& f) const;
  /// Frees segments without tokens. A sequence that has none of its own then continues in the last one that it sees, if
  /// no other sequence sees that.
  void drop_segments(const std::function<bool(SegmentId)>& is_empty);

 private:
  static constexpr uint32_t kUnused = UINT32_MAX;

  bool unified_;
  std::vector<std::vector<SegmentId>> seen_;  ///< by sequence
  std::vector<SegmentId> own_;                ///< by sequence; kMaxSegments: none
  std::vector<Reading> reading_;              ///< by sequence
  std::vector<uint32_t> stream_of_segment_;   ///< by segment; kUnused: free
};

}  // namespace mikv::context
