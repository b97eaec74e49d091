#include "session.hpp"

#include <algorithm>
#include <map>
#include <new>

#include "binding.hpp"
#include "session/byte_stream.hpp"
#include "session/container.hpp"
#include "session/saved_context.hpp"
#include "state_stream.hpp"

namespace mikv::llama {
namespace {

using session::ByteReader;
using session::ByteWriter;
using session::EngineStream;
using session::Identity;
using session::kNoSegment;
using session::SavedSequence;
using session::Section;
using session::SectionView;

/// SectionView::kind.
enum Kind : uint32_t { kIdentity = 1, kTokens, kStream, kSequences, kSegment };

Identity identity_of(const Binding& binding) {
  const llama_model* model = llama_get_model(binding.context());
  char text[256];
  llama_model_desc(model, text, sizeof text);
  Identity identity{text, 0, binding.spec().to_string()};
  std::string all = identity.model + binding.parameters();
  std::vector<char> value(1 << 16);
  for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
    // Called by name: the preloaded library can only bind calls late, not addresses.
    if (llama_model_meta_key_by_index(model, i, value.data(), value.size()) >= 0)
      all += std::string(value.data()) + "=";
    if (llama_model_meta_val_str_by_index(model, i, value.data(), value.size()) >= 0)
      all += std::string(value.data()) + "\n";
  }
  for (const uint64_t n : {llama_model_size(model), llama_model_n_params(model)}) all += std::to_string(n) + "\n";
  identity.fingerprint = session::hash(all);
  return identity;
}

std::vector<Cell> cells_only(const std::vector<StreamCell>& cells) {
  std::vector<Cell> only;
  for (const StreamCell& cell : cells) only.push_back(cell.cell);
  return only;
}

Error no_memory() { return Error{"out of memory for a saved state; use fewer or shorter contexts"}; }

// ---------------------------------------------------------------- loading

struct LoadedLayerSegment {
  int layer;
  uint32_t segment;  // number in the state
  uint32_t stream;   // of its cells in the saved context
  uint32_t n_cells;  // of the layer's stream in the state
  LoadedSegment content;
};

// A state, verified.
struct Loaded {
  StateStream stream;
  std::vector<SavedSequence> sequences;
  std::vector<LoadedLayerSegment> segments;
};

Result<Loaded> verify(const Binding& binding, llama_seq_id sequence, std::span<const uint8_t> bytes) {
  const auto sections = session::unpack(bytes);
  if (!sections) return Error{sections.error()};
  Loaded loaded;
  bool has_identity = false, has_stream = false;
  for (const SectionView& section : sections.value()) {
    if (section.kind == kIdentity) {
      const auto saved = Identity::read(section.data);
      if (!saved) return Error{saved.error()};
      const Identity here = identity_of(binding);
      if (saved.value().fingerprint != here.fingerprint) {
        return Error{"of another model or other model options (" + saved.value().model + ", here " + here.model + ")"};
      }
      if (saved.value().spec != here.spec) {
        return Error{"of another cache (--kv " + saved.value().spec + ", here --kv " + here.spec + ")"};
      }
      has_identity = true;
    } else if (section.kind == kStream) {
      auto stream = EngineStream::read(section.data);
      if (!stream) return Error{stream.error()};
      static_cast<EngineStream&>(loaded.stream) = std::move(stream).value();
      has_stream = section.a == uint32_t(sequence == kAllSequences);
    } else if (section.kind == kSequences) {
      auto sequences = session::read_sequences(section.data);
      if (!sequences) return Error{sequences.error()};
      loaded.sequences = std::move(sequences).value();
    } else if (section.kind == kSegment) {
      const auto layer = binding.layers().find(int(section.a));
      ByteReader in(section.data);
      const uint32_t stream = in.get<uint32_t>(), n_cells = in.get<uint32_t>();
      if (!in.ok() || layer == binding.layers().end() || section.b >= kMaxSegments) return Error{"damaged (a segment)"};
      auto segment = layer->second.cache->load_segment(section.data.subspan(section.data.size() - in.left()), n_cells);
      if (!segment) return Error{segment.error()};
      loaded.segments.push_back({int(section.a), section.b, stream, n_cells, std::move(segment).value()});
    }
  }
  if (!has_identity || !has_stream)
    return Error{"of another kind (a whole context instead of a sequence, or the other way)"};
  if (sequence != kAllSequences && loaded.sequences.size() > 1) return Error{"damaged (its sequences)"};
  for (const SavedSequence& s : loaded.sequences) {
    if (sequence == kAllSequences && !binding.sequences().valid(llama_seq_id(s.sequence))) {
      return Error{"of a context with more sequences than this one has"};
    }
  }
  return loaded;
}

// The numbers in this context of the segments that a state calls 0, 1, ...
using SegmentNumbers = std::map<uint32_t, SegmentId>;

Result<SegmentNumbers> number_segments(Binding& binding, llama_seq_id sequence, bool partial, const Loaded& loaded) {
  Sequences& sequences = binding.sequences();
  SegmentNumbers numbers;
  for (const SavedSequence& s : loaded.sequences) {
    const llama_seq_id to = sequence == kAllSequences ? llama_seq_id(s.sequence) : sequence;
    for (const uint32_t segment : s.seen) {
      if (const auto known = numbers.find(segment); known != numbers.end()) {
        sequences.see(to, known->second, segment == s.own);
        continue;
      }
      // A part of a sequence (its sliding window) goes on in the sequence's own segment.
      const bool in_place = partial && segment == s.own && sequences.own(to) != kMaxSegments &&
                            sequences.seen_by_others(sequences.own(to), to) == false;
      const SegmentId number =
          in_place ? sequences.own(to)
                   : sequences.new_segment(to, segment == s.own && !(partial && sequences.own(to) != kMaxSegments));
      if (number == kMaxSegments) return Error{"too many sequences share parts of the cache; use fewer"};
      numbers[segment] = number;
    }
  }
  return numbers;
}

Status install(Binding& binding, llama_seq_id sequence, bool partial, Loaded loaded,
               const std::map<int, std::vector<StreamCell>>& cells) {
  if (sequence == kAllSequences) {
    binding.clear();
  } else {
    if (!partial) binding.forget_sequence(sequence);
    binding.forget_cells(cells);  // what they held before is overwritten
    binding.cells_freed();
    if (const Status status = binding.forget_freed_cells(); !status) return status;
  }
  const auto numbers = number_segments(binding, sequence, partial, loaded);
  if (!numbers) return Error{numbers.error()};
  for (LoadedLayerSegment& segment : loaded.segments) {
    const auto number = numbers.value().find(segment.segment);
    const auto here = cells.find(segment.layer);
    if (number == numbers.value().end() || here == cells.end())
      return Error{"damaged (a segment that no sequence has)"};
    std::vector<Cell> mine;
    for (const StreamCell& cell : here->second) {
      if (sequence != kAllSequences || cell.stream == segment.stream) mine.push_back(cell.cell);
    }
    const Status status =
        binding.layers().at(segment.layer).cache->adopt_segment(number->second, std::move(segment.content), mine);
    if (!status) return status;
  }
  return {};
}

}  // namespace

Result<std::vector<uint8_t>> save_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags,
                                        std::span<const llama_token> tokens) {
  if (const Status status = binding.forget_freed_cells(); !status) return Error{status.error()};
  try {
    const auto stream = read_state(binding.context(), sequence, flags);
    if (!stream) return Error{stream.error()};
    std::vector<Section> sections;
    sections.push_back({kIdentity, 0, 0, identity_of(binding).bytes()});
    if (!tokens.empty()) {
      Section& section = sections.emplace_back(Section{kTokens, 0, 0, {}});
      ByteWriter(section.data).put_array(tokens);
    }
    sections.push_back({kStream, uint32_t(sequence == kAllSequences), 0, stream.value().bytes()});

    const Sequences& sequences = binding.sequences();
    std::vector<SavedSequence> saved;
    std::vector<SegmentId> segments;
    for (llama_seq_id s = 0; sequences.valid(s); ++s) {
      if ((sequence != kAllSequences && s != sequence) || sequences.seen_by(s).empty()) continue;
      SavedSequence& entry = saved.emplace_back();
      entry.sequence = uint32_t(s);
      entry.own = sequences.own(s) == kMaxSegments ? kNoSegment : sequences.own(s);
      entry.seen.assign(sequences.seen_by(s).begin(), sequences.seen_by(s).end());
      for (const SegmentId segment : entry.seen) {
        if (std::find(segments.begin(), segments.end(), segment) == segments.end()) segments.push_back(segment);
      }
    }
    sections.push_back({kSequences, 0, 0, session::sequence_bytes(saved)});
    for (const auto& [index, cells] : stream.value().cells) {
      const auto layer = binding.layers().find(index);
      if (layer == binding.layers().end()) continue;
      for (const SegmentId segment : segments) {
        if (layer->second.cache->n_cells(segment) == 0) continue;
        const uint32_t of_stream = sequences.stream_of_segment(segment);
        std::vector<StreamCell> mine;
        for (const StreamCell& cell : cells) {
          if (cell.stream == of_stream) mine.push_back(cell);
        }
        Section& section = sections.emplace_back(Section{kSegment, uint32_t(index), segment, {}});
        ByteWriter out(section.data);
        out.put(of_stream);
        out.put(uint32_t(mine.size()));
        if (const Status status = layer->second.cache->save_segment(segment, cells_only(mine), section.data); !status)
          return Error{status.error()};
      }
    }
    return session::pack(sections);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

Status load_state(Binding& binding, llama_seq_id sequence, llama_state_seq_flags flags,
                  std::span<const uint8_t> bytes) {
  if (sequence != kAllSequences && !binding.sequences().valid(sequence))
    return Error{"for a sequence that this context does not have"};
  try {
    auto loaded = verify(binding, sequence, bytes);
    if (!loaded) return Error{loaded.error()};
    if (const Status status = binding.forget_freed_cells(); !status) return status;
    const auto cells = write_state(binding.context(), sequence, flags, loaded.value().stream);
    Status status = cells ? install(binding, sequence, flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
                                    std::move(loaded).value(), cells.value())
                          : Error{cells.error()};
    if (status) return status;
    llama_memory_seq_rm(llama_get_memory(binding.context()), sequence, -1, -1);  // rather none than a part
    return status;
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

Result<std::vector<llama_token>> saved_tokens(std::span<const uint8_t> bytes) {
  const auto sections = session::unpack(bytes);
  if (!sections) return Error{sections.error()};
  for (const SectionView& section : sections.value()) {
    if (section.kind != kTokens) continue;
    ByteReader in(section.data);
    return in.get_array<llama_token>(section.data.size() / sizeof(llama_token));
  }
  return std::vector<llama_token>();
}

}  // namespace mikv::llama
