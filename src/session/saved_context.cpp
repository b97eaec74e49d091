#include "session/saved_context.hpp"

#include <algorithm>

#include "session/byte_stream.hpp"

namespace mikv::session {
namespace {

void put_text(ByteWriter& out, const std::string& text) {
  out.put(uint32_t(text.size()));
  out.put_bytes(text.data(), text.size());
}

std::string get_text(ByteReader& in) {
  const auto bytes = in.get_array<char>(in.get<uint32_t>());
  return {bytes.begin(), bytes.end()};
}

}  // namespace

std::vector<uint8_t> Identity::bytes() const {
  std::vector<uint8_t> bytes;
  ByteWriter out(bytes);
  put_text(out, model);
  out.put(fingerprint);
  put_text(out, spec);
  return bytes;
}

Result<Identity> Identity::read(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  Identity identity;
  identity.model = get_text(in);
  identity.fingerprint = in.get<uint64_t>();
  identity.spec = get_text(in);
  if (!in.ok() || in.left()) return Error{ErrorCode::damaged_data, "damaged (its identity)"};
  return identity;
}

void SegmentHeader::put(std::vector<uint8_t>& bytes) const {
  ByteWriter out(bytes);
  out.put(stream);
  out.put(n_cells);
  put_text(out, spec);
}

Result<SegmentHeader> SegmentHeader::read(std::span<const uint8_t> bytes, uint32_t version,
                                          std::span<const uint8_t>& segment) {
  ByteReader in(bytes);
  SegmentHeader header;
  header.stream = in.get<uint32_t>();
  header.n_cells = in.get<uint32_t>();
  if (version > 1) header.spec = get_text(in);
  if (!in.ok()) return Error{ErrorCode::damaged_data, "damaged (a segment)"};
  segment = bytes.last(in.left());
  return header;
}

std::vector<uint8_t> engine_bytes(const EngineState& state) {
  std::vector<uint8_t> bytes;
  ByteWriter out(bytes);
  out.put(state.size);
  out.put(uint64_t(state.holes.size()));
  for (const EngineState::Hole& hole : state.holes) out.put(hole);
  out.put_array(std::span<const uint8_t>(state.words));
  return bytes;
}

Result<EngineState> read_engine(std::span<const uint8_t> bytes) {
  const Error bad{ErrorCode::damaged_data, "damaged (the engine's part)"};
  ByteReader in(bytes);
  EngineState state;
  state.size = in.get<uint64_t>();
  const uint64_t n_holes = in.get<uint64_t>();
  state.holes = in.get_array<EngineState::Hole>(n_holes);
  state.words = in.get_array<uint8_t>(in.left());
  if (!in.ok()) return bad;
  uint64_t at = 0, in_holes = 0;
  for (const EngineState::Hole& hole : state.holes) {
    if (hole.offset < at || hole.size > state.size || hole.offset > state.size - hole.size) return bad;
    at = hole.offset + hole.size;
    in_holes += hole.size;
  }
  if (state.size - in_holes != state.words.size()) return bad;
  return state;
}

std::vector<uint8_t> sequence_bytes(std::span<const SavedSequence> sequences) {
  std::vector<uint8_t> bytes;
  ByteWriter out(bytes);
  for (const SavedSequence& s : sequences) {
    out.put(s.sequence);
    out.put(s.own);
    out.put(uint32_t(s.seen.size()));
    out.put_array(std::span<const uint32_t>(s.seen));
  }
  return bytes;
}

Result<std::vector<SavedSequence>> read_sequences(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  std::vector<SavedSequence> sequences;
  while (in.ok() && in.left()) {
    SavedSequence& s = sequences.emplace_back();
    s.sequence = in.get<uint32_t>();
    s.own = in.get<uint32_t>();
    s.seen = in.get_array<uint32_t>(in.get<uint32_t>());
    const bool good = std::all_of(s.seen.begin(), s.seen.end(), [](uint32_t f) { return f < kMaxSavedSegments; });
    if (!good || (s.own != kNoSegment && std::find(s.seen.begin(), s.seen.end(), s.own) == s.seen.end()))
      return Error{ErrorCode::damaged_data, "damaged (its sequences)"};
  }
  if (!in.ok()) return Error{ErrorCode::damaged_data, "damaged (its sequences)"};
  return sequences;
}

}  // namespace mikv::session
