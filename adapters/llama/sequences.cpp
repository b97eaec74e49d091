#include "sequences.hpp"

#include <algorithm>

namespace mikv::llama {

Sequences::Sequences(uint32_t n_sequences, bool unified)
    : unified_(unified), seen_(std::max(1u, n_sequences)), own_(seen_.size(), kMaxFrames) {}

FrameId Sequences::new_frame(llama_seq_id sequence, bool own) {
  const auto free = std::find(stream_of_frame_.begin(), stream_of_frame_.end(), kUnused);
  const FrameId frame = FrameId(free - stream_of_frame_.begin());
  if (frame >= kMaxFrames) return kMaxFrames;
  if (free == stream_of_frame_.end()) stream_of_frame_.push_back(kUnused);
  stream_of_frame_[frame] = stream_of(sequence);
  seen_[size_t(sequence)].push_back(frame);
  if (own) own_[size_t(sequence)] = frame;
  return frame;
}

FrameId Sequences::frame_for_tokens(llama_seq_id sequence) {
  const FrameId frame = own_[size_t(sequence)];
  return frame != kMaxFrames ? frame : new_frame(sequence, true);
}

void Sequences::see(llama_seq_id sequence, FrameId frame, bool own) {
  std::vector<FrameId>& seen = seen_[size_t(sequence)];
  if (std::find(seen.begin(), seen.end(), frame) == seen.end()) seen.push_back(frame);
  if (own) own_[size_t(sequence)] = frame;
}

bool Sequences::seen_by_others(FrameId frame, llama_seq_id sequence) const {
  for (size_t s = 0; s < seen_.size(); ++s) {
    if (s != size_t(sequence) && std::find(seen_[s].begin(), seen_[s].end(), frame) != seen_[s].end()) return true;
  }
  return false;
}

void Sequences::share(llama_seq_id from, llama_seq_id to) {
  const std::vector<FrameId> frames = seen_[size_t(from)];
  for (const FrameId frame : frames) see(to, frame, false);
}

void Sequences::forget(llama_seq_id sequence) {
  seen_[size_t(sequence)].clear();
  own_[size_t(sequence)] = kMaxFrames;
}

void Sequences::clear() {
  for (auto& seen : seen_) seen.clear();
  std::fill(own_.begin(), own_.end(), kMaxFrames);
  stream_of_frame_.clear();
}

void Sequences::for_each_frame(const std::function<void(FrameId)>& f) const {
  for (FrameId frame = 0; frame < stream_of_frame_.size(); ++frame) {
    if (stream_of_frame_[frame] != kUnused) f(frame);
  }
}

void Sequences::drop_frames(const std::function<bool(FrameId)>& is_empty) {
  for (FrameId frame = 0; frame < stream_of_frame_.size(); ++frame) {
    if (stream_of_frame_[frame] == kUnused || !is_empty(frame)) continue;
    stream_of_frame_[frame] = kUnused;
    for (auto& seen : seen_) std::erase(seen, frame);
    std::replace(own_.begin(), own_.end(), frame, kMaxFrames);
  }
  // A sequence that was cut back goes on where it then ends.
  for (size_t s = 0; s < seen_.size(); ++s) {
    if (own_[s] == kMaxFrames && !seen_[s].empty() && !seen_by_others(seen_[s].back(), llama_seq_id(s)))
      own_[s] = seen_[s].back();
  }
}

}  // namespace mikv::llama
