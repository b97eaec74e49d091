// Context: states as bytes, and snapshots.
//
// A saved state is a container (session/container.hpp): the identity of model and spec, tokens if there are any, what
// the engine itself keeps of its cells, which sequences see which segments, and the segments of every layer.
#include <algorithm>
#include <map>
#include <new>
#include <set>

#include "context/context_impl.hpp"
#include "session/byte_stream.hpp"
#include "session/container.hpp"
#include "session/saved_context.hpp"

namespace mikv {
namespace {

using context::ContextLayer;
using context::Sequences;
using session::ByteReader;
using session::ByteWriter;
using session::Identity;
using session::kNoSegment;
using session::SavedSequence;
using session::Section;
using session::SectionView;

static_assert(session::kMaxSavedSegments == kMaxSegments);

/// SectionView::kind.
enum Kind : uint32_t { kIdentity = 1, kTokens, kEngine, kSequences, kSegment };

Error damaged(const char* what) { return Error{ErrorCode::damaged_data, std::string("damaged (") + what + ")"}; }

// ---------------------------------------------------------------- saving

Section segment_section(int layer, SegmentId segment, uint32_t number, uint32_t stream,
                        std::span<const CellPlace> places, const LayerCache& cache, Status& status) {
  std::vector<Cell> cells;
  for (const CellPlace& place : places) {
    if (place.stream == stream) cells.push_back(place.cell);
  }
  Section section{kSegment, uint32_t(layer), number, {}};
  session::SegmentHeader{stream, uint32_t(cells.size()), cache.spec_of(segment).to_string()}.put(section.data);
  status = cache.save_segment(segment, cells, section.data);
  return section;
}

// What `sequence`, or all, see; every segment they do once in `segments`, whose order numbers them in the state:
// numbers of this context would make the state of the same tokens another one after loading.
std::vector<SavedSequence> saved_sequences(const Sequences& sequences, SequenceId sequence,
                                           std::vector<SegmentId>& segments) {
  std::vector<SavedSequence> saved;
  for (SequenceId s = 0; sequences.valid(s); ++s) {
    if ((sequence != kAllSequences && s != sequence) || sequences.seen_by(s).empty()) continue;
    SavedSequence& entry = saved.emplace_back();
    entry.sequence = sequence == kAllSequences ? uint32_t(s) : 0;
    entry.own = kNoSegment;
    for (const SegmentId segment : sequences.seen_by(s)) {
      auto at = std::ranges::find(segments, segment);
      if (at == segments.end()) at = segments.insert(at, segment);
      entry.seen.push_back(uint32_t(at - segments.begin()));
      if (segment == sequences.own(s)) entry.own = entry.seen.back();
    }
  }
  return saved;
}

Result<std::vector<uint8_t>> save(Context::Impl& impl, SequenceId sequence, std::span<const int32_t> tokens,
                                  bool partial) {
  if (const Status status = impl.forget_freed_cells(); !status) return status.error();
  // What is compressed with the next step anyway is saved small.
  if (const Status status = impl.commit_ended(sequence); !status) return status.error();
  const auto engine = impl.owner->save(sequence, partial);
  if (!engine) return engine.error();
  std::vector<Section> sections;
  const Identity identity{impl.options.model, impl.options.fingerprint, impl.spec().to_string()};
  sections.push_back({kIdentity, 0, 0, identity.bytes()});
  if (!tokens.empty()) {
    Section& section = sections.emplace_back(Section{kTokens, 0, 0, {}});
    ByteWriter(section.data).put_array(tokens);
  }
  sections.push_back({kEngine, uint32_t(sequence == kAllSequences), 0, session::engine_bytes(engine.value())});
  std::vector<SegmentId> segments;
  const auto saved = saved_sequences(impl.sequences, sequence, segments);
  sections.push_back({kSequences, 0, 0, session::sequence_bytes(saved)});
  for (const auto& [index, places] : engine.value().cells) {
    const ContextLayer* layer = impl.layers.find(index);
    if (!layer) continue;
    for (uint32_t number = 0; number < segments.size(); ++number) {
      const SegmentId segment = segments[number];
      if (layer->cache->n_cells(segment) == 0) continue;
      Status status;
      const uint32_t stream = impl.sequences.stream_of_segment(segment);
      sections.push_back(segment_section(index, segment, number, stream, places, *layer->cache, status));
      if (!status) return status.error();
    }
  }
  return session::pack(sections);
}

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
  EngineState engine;
  std::vector<SavedSequence> sequences;
  std::vector<LoadedLayerSegment> segments;
};

// Returns the spec that the state was saved under.
Result<Spec> check_identity(const Context::Impl& impl, std::span<const uint8_t> bytes) {
  const auto saved = Identity::read(bytes);
  if (!saved) return saved.error();
  if (saved.value().fingerprint != impl.options.fingerprint) {
    return Error{ErrorCode::mismatch, "of another model or other model options (" + saved.value().model + ", here " +
                                          impl.options.model + ")"};
  }
  auto spec = Spec::parse(saved.value().spec);
  if (!spec) return Error{ErrorCode::mismatch, "of a cache that this version does not know (" + spec.message() + ")"};
  return spec;
}

Status read_segment(const Context::Impl& impl, const SectionView& section, uint32_t version, const Spec& asked,
                    Loaded& loaded) {
  const ContextLayer* layer = impl.layers.find(int(section.a));
  if (!layer || section.b >= kMaxSegments) return damaged("a segment");
  std::span<const uint8_t> bytes;
  const auto header = session::SegmentHeader::read(section.data, version, bytes);
  if (!header) return header.error();
  auto spec = header.value().spec.empty() ? asked : Spec::parse(header.value().spec);
  if (!spec) return damaged("a segment's spec");
  auto content = layer->cache->load_segment(bytes, header.value().n_cells, spec.value());
  if (!content) return content.error();
  loaded.segments.push_back(
      {int(section.a), section.b, header.value().stream, header.value().n_cells, std::move(content).value()});
  return {};
}

// That each segment has a sequence, and in a split context, whose sequences have cells of their own, one.
Status check_sequences(const Context::Impl& impl, SequenceId sequence, const Loaded& loaded) {
  std::set<uint32_t> named;
  std::map<uint32_t, uint32_t> seen_by;  // the sequence that sees a segment
  for (const SavedSequence& s : loaded.sequences) {
    if (sequence == kAllSequences && !impl.sequences.valid(SequenceId(s.sequence))) {
      return Error{ErrorCode::mismatch, "of a context with more sequences than this one has"};
    }
    if (!named.insert(s.sequence).second) return damaged("a sequence that is there twice");
    for (const uint32_t segment : s.seen) {
      const bool first = seen_by.emplace(segment, s.sequence).second;
      if (!first && !impl.sequences.unified()) return damaged("a segment of two sequences");
    }
  }
  for (const LoadedLayerSegment& segment : loaded.segments) {
    const auto seen = seen_by.find(segment.segment);
    if (seen == seen_by.end()) return damaged("a segment that no sequence has");
    const bool in_stream = impl.sequences.unified() || segment.stream == seen->second;
    if (sequence == kAllSequences && !in_stream) return damaged("a segment's stream");
  }
  return {};
}

Result<Loaded> verify(const Context::Impl& impl, SequenceId sequence, std::span<const uint8_t> bytes) {
  const auto container = session::unpack(bytes);
  if (!container) return container.error();
  Loaded loaded;
  Spec asked;
  bool has_identity = false, has_engine = false;
  for (const SectionView& section : container.value().sections) {
    Status status;
    if (section.kind == kIdentity) {
      const auto spec = check_identity(impl, section.data);
      if (!spec) return spec.error();
      asked = spec.value();
      has_identity = true;
    } else if (section.kind == kEngine) {
      auto engine = session::read_engine(section.data);
      if (!engine) return engine.error();
      loaded.engine = std::move(engine).value();
      has_engine = section.a == uint32_t(sequence == kAllSequences);
    } else if (section.kind == kSequences) {
      auto sequences = session::read_sequences(section.data);
      if (!sequences) return sequences.error();
      loaded.sequences = std::move(sequences).value();
    } else if (section.kind == kSegment) {
      if (!has_identity) return damaged("its order");
      status = read_segment(impl, section, container.value().version, asked, loaded);
    }
    if (!status) return status.error();
  }
  if (!has_identity || !has_engine) {
    return Error{ErrorCode::mismatch, "of another kind (a whole context instead of a sequence, or the other way)"};
  }
  if (sequence != kAllSequences && loaded.sequences.size() > 1) return damaged("its sequences");
  if (const Status status = impl.owner->check(sequence, loaded.engine); !status) return status.error();
  if (const Status status = check_sequences(impl, sequence, loaded); !status) return status.error();
  return loaded;
}

// The numbers in this context of the segments that a state calls 0, 1, ...
using SegmentNumbers = std::map<uint32_t, SegmentId>;

Result<SegmentNumbers> number_segments(Context::Impl& impl, SequenceId sequence, bool partial, const Loaded& loaded) {
  Sequences& sequences = impl.sequences;
  SegmentNumbers numbers;
  for (const SavedSequence& s : loaded.sequences) {
    const SequenceId to = sequence == kAllSequences ? SequenceId(s.sequence) : sequence;
    for (const uint32_t segment : s.seen) {
      sequences.set_reading(to, context::Reading::ended);
      if (const auto known = numbers.find(segment); known != numbers.end()) {
        sequences.see(to, known->second, segment == s.own);
        continue;
      }
      // A part of a sequence (its sliding window) continues the sequence's own segment.
      const bool has_own = sequences.own(to) != kMaxSegments;
      const bool in_place = partial && segment == s.own && has_own && !sequences.seen_by_others(sequences.own(to), to);
      const SegmentId number =
          in_place ? sequences.own(to) : sequences.new_segment(to, segment == s.own && !(partial && has_own));
      if (number == kMaxSegments) return Error{"too many sequences share parts of the cache; use fewer"};
      numbers[segment] = number;
    }
  }
  return numbers;
}

// Reserves what the loaded segments take; lowers them, and those that are there, as far as it must.
Status make_room(Context::Impl& impl, Loaded& loaded) {
  const auto bytes_at = [&](const policy::Rung* rung) {
    uint64_t bytes = 0;
    for (const LoadedLayerSegment& segment : loaded.segments) {
      const int64_t freed = rung ? segment.content.freed_by(*rung) : 0;
      bytes += uint64_t(std::max<int64_t>(0, int64_t(segment.content.bytes()) - freed));
    }
    return bytes;
  };
  return impl.make_room_for(bytes_at, [&](const policy::Rung& rung) {
    for (LoadedLayerSegment& segment : loaded.segments) (void)segment.content.lower(rung);
  });
}

Status install(Context::Impl& impl, SequenceId sequence, bool partial, Loaded loaded, const CellsByLayer& cells) {
  if (sequence == kAllSequences) {
    impl.layers.clear();
    impl.sequences.clear();
    impl.may_have_ended.clear();
    impl.forget_sequence(kAllSequences);
    impl.cells_freed = false;
  } else {
    if (!partial) impl.forget_sequence(sequence);
    impl.forget_cells(cells);  // what they held before is overwritten
    impl.cells_freed = true;
    if (const Status status = impl.forget_freed_cells(true); !status) return status;
  }
  if (const Status status = make_room(impl, loaded); !status) return status;
  const auto numbers = number_segments(impl, sequence, partial, loaded);
  if (!numbers) return numbers.error();
  for (LoadedLayerSegment& segment : loaded.segments) {
    const auto number = numbers.value().find(segment.segment);
    const auto here = cells.find(segment.layer);
    if (number == numbers.value().end() || here == cells.end()) return damaged("a segment that no sequence has");
    std::vector<Cell> mine;
    for (const CellPlace& place : here->second) {
      if (sequence != kAllSequences || place.stream == segment.stream) mine.push_back(place.cell);
    }
    LayerCache& cache = *impl.layers.find(segment.layer)->cache;
    const Status status = cache.adopt_segment(number->second, std::move(segment.content), mine);
    if (!status) return status;
  }
  return {};
}

}  // namespace

Result<std::vector<uint8_t>> Context::save(SequenceId sequence, std::span<const int32_t> tokens, bool partial) {
  if (sequence != kAllSequences && !impl_->sequences.valid(sequence)) {
    return context::no_sequence(sequence, impl_->sequences.n_sequences());
  }
  return context::guarded([&] { return mikv::save(*impl_, sequence, tokens, partial); });
}

Status Context::load(SequenceId sequence, std::span<const uint8_t> bytes, bool partial) {
  if (sequence != kAllSequences && !impl_->sequences.valid(sequence)) {
    return context::no_sequence(sequence, impl_->sequences.n_sequences());
  }
  bool changed = false;
  Status status = context::guarded([&]() -> Status {
    auto loaded = verify(*impl_, sequence, bytes);
    if (!loaded) return loaded.error();
    if (const Status forgotten = impl_->forget_freed_cells(); !forgotten) return forgotten;
    changed = true;
    const auto cells = impl_->owner->load(sequence, partial, loaded.value().engine);
    return cells ? install(*impl_, sequence, partial, std::move(loaded).value(), cells.value()) : Status(cells.error());
  });
  impl_->account->end_reservation();
  if (status || !changed) return status;
  impl_->owner->drop(sequence);  // rather none than a part
  (void)remove(sequence);
  return status;
}

Result<std::vector<int32_t>> Context::saved_tokens(std::span<const uint8_t> bytes) {
  return context::guarded([&]() -> Result<std::vector<int32_t>> {
    const auto container = session::unpack(bytes);
    if (!container) return container.error();
    for (const SectionView& section : container.value().sections) {
      if (section.kind != kTokens) continue;
      ByteReader in(section.data);
      return in.get_array<int32_t>(section.data.size() / sizeof(int32_t));
    }
    return std::vector<int32_t>();
  });
}

// ---------------------------------------------------------------- snapshots

Result<std::shared_ptr<const Snapshot>> Context::snapshot() const {
  return context::guarded([&]() -> Result<std::shared_ptr<const Snapshot>> {
    auto copy = std::make_shared<Snapshot>(Snapshot{{}, impl_->sequences, impl_->own_cells});
    for (const auto& [index, layer] : impl_->layers.layers) {
      auto balancers = impl_->balancer_file.of(layer.cache->spec(), index);
      if (!balancers) return balancers.error();
      auto cache = layer.cache->clone(layer.cache->spec(), nullptr, std::move(balancers).value());
      if (!cache) return cache.error();
      copy->layers[index] = std::move(cache).value();
    }
    return std::shared_ptr<const Snapshot>(std::move(copy));
  });
}

Status Context::restore(const std::shared_ptr<const Snapshot>& snapshot, const Spec& spec) {
  const Error mismatch{ErrorCode::mismatch, "the snapshot is of another model or context; take one of this context"};
  if (!snapshot || snapshot->sequences.n_sequences() != impl_->sequences.n_sequences() ||
      snapshot->sequences.unified() != impl_->sequences.unified() ||
      snapshot->cells.n_cells() != impl_->own_cells.n_cells())
    return mismatch;
  // All or nothing: a spec that does not fit one layer must not leave a mixture behind.
  return context::guarded([&]() -> Status {
    std::map<int, std::unique_ptr<LayerCache>> next;
    for (const auto& [index, layer] : impl_->layers.layers) {
      const auto found = snapshot->layers.find(index);
      if (found == snapshot->layers.end() || found->second->shape() != layer.cache->shape() ||
          found->second->max_cells() != layer.cache->max_cells())
        return mismatch;
      auto balancers = impl_->balancer_file.of(spec, index);
      if (!balancers) return balancers.error();
      auto cache = found->second->clone(spec, impl_->account, std::move(balancers).value());
      if (!cache) return cache.error();
      next[index] = std::move(cache).value();
    }
    context::Sequences sequences = snapshot->sequences;
    context::CellTable cells = snapshot->cells;
    Spec next_spec = spec;
    // Nothing fails from here on.
    for (auto& [index, layer] : impl_->layers.layers) layer.cache = std::move(next.find(index)->second);
    impl_->forget_sequence(kAllSequences);
    impl_->may_have_ended.clear();
    impl_->sequences = std::move(sequences);
    if (impl_->keeps_cells()) impl_->own_cells = std::move(cells);
    impl_->options.spec = std::move(next_spec);
    return {};
  });
}

}  // namespace mikv
