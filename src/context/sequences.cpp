#include "context/sequences.hpp"

#include <algorithm>

namespace mikv::context {

Error no_sequence(SequenceId sequence, uint32_t n_sequences) {
  return Error{"sequence " + std::to_string(sequence) + " is out of range; use 0 to " +
               std::to_string(n_sequences - 1)};
}

Sequences::Sequences(uint32_t n_sequences, bool unified)
    : unified_(unified), seen_(std::max(1u, n_sequences)), own_(seen_.size(), kMaxSegments), reading_(seen_.size()) {}

SegmentId Sequences::new_segment(SequenceId sequence, bool own) {
  const auto free = std::find(stream_of_segment_.begin(), stream_of_segment_.end(), kUnused);
  const SegmentId segment = SegmentId(free - stream_of_segment_.begin());
  if (segment >= kMaxSegments) return kMaxSegments;
  if (free == stream_of_segment_.end()) stream_of_segment_.push_back(kUnused);
  stream_of_segment_[segment] = stream_of(sequence);
  seen_[size_t(sequence)].push_back(segment);
  if (own) own_[size_t(sequence)] = segment;
  return segment;
}

SegmentId Sequences::segment_for_tokens(SequenceId sequence) {
  const SegmentId segment = own_[size_t(sequence)];
  return segment != kMaxSegments ? segment : new_segment(sequence, true);
}

void Sequences::see(SequenceId sequence, SegmentId segment, bool own) {
  std::vector<SegmentId>& seen = seen_[size_t(sequence)];
  if (std::find(seen.begin(), seen.end(), segment) == seen.end()) seen.push_back(segment);
  if (own) own_[size_t(sequence)] = segment;
}

bool Sequences::seen_by_others(SegmentId segment, SequenceId sequence) const {
  for (size_t s = 0; s < seen_.size(); ++s) {
    if (s != size_t(sequence) && std::find(seen_[s].begin(), seen_[s].end(), segment) != seen_[s].end()) return true;
  }
  return false;
}

void Sequences::share(SequenceId from, SequenceId to) {
  const std::vector<SegmentId> segments = seen_[size_t(from)];
  for (const SegmentId segment : segments) see(to, segment, false);
  if (reading(to) == Reading::nothing) set_reading(to, reading(from));
}

void Sequences::forget(SequenceId sequence) {
  seen_[size_t(sequence)].clear();
  own_[size_t(sequence)] = kMaxSegments;
  reading_[size_t(sequence)] = Reading::nothing;
}

void Sequences::clear() {
  for (auto& seen : seen_) seen.clear();
  std::fill(own_.begin(), own_.end(), kMaxSegments);
  std::fill(reading_.begin(), reading_.end(), Reading::nothing);
  stream_of_segment_.clear();
}

void Sequences::for_each_segment(const std::function<void(SegmentId)>& f) const {
  for (SegmentId segment = 0; segment < stream_of_segment_.size(); ++segment) {
    if (stream_of_segment_[segment] != kUnused) f(segment);
  }
}

void Sequences::drop_segments(const std::function<bool(SegmentId)>& is_empty) {
  for (SegmentId segment = 0; segment < stream_of_segment_.size(); ++segment) {
    if (stream_of_segment_[segment] == kUnused || !is_empty(segment)) continue;
    stream_of_segment_[segment] = kUnused;
    for (auto& seen : seen_) std::erase(seen, segment);
    std::replace(own_.begin(), own_.end(), segment, kMaxSegments);
  }
  // A sequence that was cut back continues where it then ends.
  for (size_t s = 0; s < seen_.size(); ++s) {
    if (own_[s] == kMaxSegments && !seen_[s].empty() && !seen_by_others(seen_[s].back(), SequenceId(s)))
      own_[s] = seen_[s].back();
  }
}

}  // namespace mikv::context
