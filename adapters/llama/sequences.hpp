// Sequences: which frames of the cache hold the tokens of which of llama.cpp's sequences.
//
// A sequence puts its new tokens into a frame of its own, so that it has a budget and a centre of its own. It may see
// more frames: earlier ones of a long prompt (docs/adr/0014), and those of a prefix that it shares
// (llama_memory_seq_cp, tokens of several sequences, a loaded session). A stream is one of llama.cpp's buffers of
// cells: one a sequence, or one for all (kv_unified).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "llama.h"
#include "mikv/cache.hpp"

namespace mikv::llama {

class Sequences {
 public:
  Sequences(uint32_t n_sequences, bool unified);

  uint32_t n_sequences() const { return uint32_t(seen_.size()); }
  bool unified() const { return unified_; }
  bool valid(llama_seq_id sequence) const { return sequence >= 0 && uint32_t(sequence) < n_sequences(); }
  uint32_t stream_of(llama_seq_id sequence) const { return unified_ ? 0 : uint32_t(sequence); }
  uint32_t n_streams() const { return unified_ ? 1 : n_sequences(); }

  /// Where new tokens of the sequence go; made when first asked for. kMaxFrames if there are no more.
  FrameId frame_for_tokens(llama_seq_id sequence);
  /// A frame number that nobody uses, seen by the sequence from now on. kMaxFrames if there are no more.
  FrameId new_frame(llama_seq_id sequence, bool own);
  std::span<const FrameId> seen_by(llama_seq_id sequence) const { return seen_[size_t(sequence)]; }
  FrameId own(llama_seq_id sequence) const { return own_[size_t(sequence)]; }
  uint32_t stream_of_frame(FrameId frame) const { return stream_of_frame_[frame]; }

  /// The sequence sees the frame too, or has it for its own.
  void see(llama_seq_id sequence, FrameId frame, bool own);
  bool seen_by_others(FrameId frame, llama_seq_id sequence) const;
  void share(llama_seq_id from, llama_seq_id to);  ///< `to` sees what `from` sees
  void forget(llama_seq_id sequence);              ///< it holds no tokens any more
  void clear();
  /// Calls f(frame) for every frame in use.
  void for_each_frame(const std::function<void(FrameId)>& f) const;
  /// Frames whose last token went are free again; a sequence that then has none of its own goes on in the last one, if
  /// it alone sees that.
  void drop_frames(const std::function<bool(FrameId)>& is_empty);

 private:
  static constexpr uint32_t kUnused = UINT32_MAX;

  bool unified_;
  std::vector<std::vector<FrameId>> seen_;  ///< by sequence
  std::vector<FrameId> own_;                ///< by sequence; kMaxFrames: none
  std::vector<uint32_t> stream_of_frame_;   ///< by frame; kUnused: free
};

}  // namespace mikv::llama
