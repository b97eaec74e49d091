// Context: what engines do to sequences between steps.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <thread>

#include "context/context_impl.hpp"

namespace mikv {

using context::ContextLayer;
using context::guarded;
using context::no_layer;
using context::no_sequence;

namespace {

bool is_everything(Position p0, Position p1) { return p0 <= 0 && (p1 < 0 || p1 == INT32_MAX); }

// Turns a key by `delta` positions.
void turn(const Rope& rope, Position delta, std::span<float> key) {
  for (uint32_t i = 0; i < rope.angles.size(); ++i) {
    const auto [a, b] = rope.channels(i);
    const double angle = double(rope.angles[i]) * delta, c = std::cos(angle), s = std::sin(angle);
    const double x = key[a], y = key[b];
    key[a] = float(x * c - y * s);
    key[b] = float(x * s + y * c);
  }
}

}  // namespace

// ---------------------------------------------------------------- cells that hold nothing any more

Status Context::Impl::forget_freed_cells(bool loading) {
  if (!cells_freed) return {};
  const auto cells = owner->live_cells();
  if (!cells) return cells.error();
  for (auto& [index, layer] : layers.layers) {
    // By stream: bit c % 64 of word c / 64 is cell c.
    std::vector<std::vector<uint64_t>> live(sequences.n_streams(), std::vector<uint64_t>((layer.n_cells + 63) / 64));
    if (const auto found = cells.value().find(index); found != cells.value().end()) {
      for (const auto& [stream, cell] : found->second) live[stream][cell / 64] |= uint64_t{1} << (cell % 64);
    }
    sequences.for_each_segment(
        [&](SegmentId segment) { layer.cache->retain(segment, live[sequences.stream_of_segment(segment)]); });
  }
  sequences.drop_segments([&](SegmentId segment) { return layers.is_empty(segment); });
  cells_freed = false;
  if (!loading) find_missing(cells.value());
  return {};
}

void Context::Impl::find_missing(const CellsByLayer& cells) {
  for (const auto& [index, of_layer] : cells) {
    const ContextLayer* layer = layers.find(index);
    if (!layer) continue;
    std::vector<uint64_t> n_missing(sequences.n_streams());
    for (const CellPlace& place : of_layer) ++n_missing[place.stream];
    sequences.for_each_segment(
        [&](SegmentId segment) { n_missing[sequences.stream_of_segment(segment)] -= layer->cache->n_cells(segment); });
    for (uint32_t stream = 0; stream < n_missing.size(); ++stream) {
      if (n_missing[stream] == 0) continue;
      const Error why{ErrorCode::engine, std::to_string(n_missing[stream]) + " of its tokens were never stored"};
      set_incomplete(sequences.unified() ? kAllSequences : SequenceId(stream), why);
    }
  }
}

void Context::Impl::set_incomplete(SequenceId sequence, const Error& why) noexcept {
  for (SequenceId s = 0; sequences.valid(s); ++s) {
    if ((sequence != kAllSequences && s != sequence) || !incomplete[size_t(s)]) continue;  // the first reason stays
    incomplete[size_t(s)] = Error::copy_of(why);
  }
}

void Context::Impl::forget_cells(const CellsByLayer& cells) {
  for (const auto& [index, of_layer] : cells) {
    ContextLayer* layer = layers.find(index);
    if (!layer) continue;
    std::map<uint32_t, std::vector<Cell>> by_stream;
    for (const CellPlace& place : of_layer) by_stream[place.stream].push_back(place.cell);
    sequences.for_each_segment(
        [&](SegmentId segment) { layer->cache->erase(segment, by_stream[sequences.stream_of_segment(segment)]); });
  }
}

void Context::Impl::forget_sequence(SequenceId sequence) {
  for (SequenceId s = 0; sequences.valid(s); ++s) {
    if (s != sequence && sequence >= 0) continue;
    sequences.forget(s);
    budget.forget_refusal(s);
    incomplete[size_t(s)] = {};
  }
}

// ---------------------------------------------------------------- sequences

Status Context::remove(SequenceId sequence, Position p0, Position p1) {
  if (sequence != kAllSequences && !impl_->sequences.valid(sequence)) {
    return no_sequence(sequence, impl_->sequences.n_sequences());
  }
  return guarded([&]() -> Status {
    impl_->cells_freed = true;
    if (impl_->keeps_cells()) impl_->own_cells.remove(sequence, p0, p1);
    if (is_everything(p0, p1)) impl_->forget_sequence(sequence);
    return {};
  });
}

Status Context::Impl::make_room_for(const std::function<uint64_t(const policy::Rung*)>& bytes_at,
                                    const std::function<void(const policy::Rung&)>& lower) {
  if (account->room() < bytes_at(nullptr)) {
    if (const Status status = commit_ended(kAllSequences); !status) return status;
  }
  context::StepPlan no_step;
  return budget.make_room_for(scene(no_step), bytes_at, lower);
}

void Context::Impl::empty_stream(SequenceId sequence) {
  for (const SegmentId segment : sequences.seen_by(sequence)) layers.empty_segment(segment);
  sequences.drop_segments([&](SegmentId segment) { return layers.is_empty(segment); });
}

Status Context::Impl::copy_stream(SequenceId from, SequenceId to) {
  empty_stream(to);
  forget_sequence(to);
  const auto bytes_at = [&](const policy::Rung* rung) {
    uint64_t bytes = 0;
    for (const SegmentId segment : sequences.seen_by(from)) bytes += layers.bytes_of(segment, rung);
    return bytes;
  };
  Status status = make_room_for(bytes_at, [](const policy::Rung&) {});
  for (const SegmentId segment : sequences.seen_by(from)) {
    if (!status) break;
    const SegmentId copy = sequences.new_segment(to, segment == sequences.own(from));
    status = copy == kMaxSegments ? Error{"too many sequences share parts of the cache; use fewer"}
                                  : layers.copy_segment(segment, copy);
    if (status && std::ranges::find(may_have_ended, segment) != may_have_ended.end()) may_have_ended.push_back(copy);
  }
  account->end_reservation();
  sequences.set_reading(to, sequences.reading(from));
  if (!status) empty_stream(to);
  return status;
}

Status Context::copy(SequenceId from, SequenceId to, Position p0, Position p1) {
  for (const SequenceId sequence : {from, to}) {
    if (!impl_->sequences.valid(sequence)) return no_sequence(sequence, impl_->sequences.n_sequences());
  }
  if (from == to) return {};
  const Status copied = guarded([&]() -> Status {
    if (const Status status = impl_->forget_freed_cells(); !status) return status;
    if (impl_->keeps_cells()) {
      impl_->own_cells.copy(from, to, p0, p1);
      impl_->cells_freed = !is_everything(p0, p1);
    }
    if (impl_->sequences.unified()) {
      impl_->sequences.share(from, to);
    } else if (const Status status = impl_->copy_stream(from, to); !status) {
      return status;
    }
    // A copy of a part is a part. In a unified context it is added to what is there, which may be one already.
    const Status& of_from = impl_->incomplete[size_t(from)];
    if (!impl_->sequences.unified() || !of_from) impl_->incomplete[size_t(to)] = of_from;
    return {};
  });
  if (!copied) impl_->set_incomplete(to, copied.error());
  return copied;
}

void Context::invalidate(SequenceId sequence, const Error& why) {
  if (sequence == kAllSequences || impl_->sequences.valid(sequence)) impl_->set_incomplete(sequence, why);
}

Status Context::keep(SequenceId sequence) {
  if (!impl_->sequences.valid(sequence)) return no_sequence(sequence, impl_->sequences.n_sequences());
  return guarded([&]() -> Status {
    impl_->cells_freed = true;
    if (impl_->keeps_cells()) {
      impl_->own_cells.keep(sequence);
    } else if (!impl_->sequences.unified()) {
      return {};  // the engine looks at the sequence's own stream only
    }
    for (SequenceId other = 0; impl_->sequences.valid(other); ++other) {
      if (other != sequence) impl_->forget_sequence(other);
    }
    return {};
  });
}

void Context::Impl::rotate(int index, const std::map<uint32_t, std::map<Cell, Position>>& moved) {
  ContextLayer& layer = *layers.find(index);
  const size_t dim = layer.cache->shape().head_dim_k;
  sequences.for_each_segment([&](SegmentId segment) {
    const auto of_stream = moved.find(sequences.stream_of_segment(segment));
    if (of_stream == moved.end()) return;
    layer.cache->visit_keys(segment, [&](std::span<const Cell> cells, uint32_t, std::span<float> keys) {
      uint32_t changed = 0;
      for (size_t i = 0; i < cells.size(); ++i) {
        const auto delta = of_stream->second.find(cells[i]);
        if (delta == of_stream->second.end()) continue;
        turn(layer.rope, delta->second, keys.subspan(i * dim, dim));
        changed |= 1u << i;
      }
      return changed;
    });
  });
}

Status Context::shift(SequenceId sequence, Position p0, Position p1, Position delta) {
  if (sequence != kAllSequences && !impl_->sequences.valid(sequence))
    return no_sequence(sequence, impl_->sequences.n_sequences());
  return guarded([&]() -> Status {
    if (!impl_->keeps_cells()) {
      impl_->cells_freed = true;  // a token that is moved before the beginning is gone
      return {};
    }
    for (const auto& [index, layer] : impl_->layers.layers) {
      if (layer.rope.angles.empty()) {
        return Error{ErrorCode::unsupported, "layer " + std::to_string(index) +
                                                 ": positions cannot be shifted without its RoPE; call set_rope first"};
      }
    }
    if (const Status status = impl_->forget_freed_cells(); !status) return status;
    impl_->cells_freed = true;
    try {
      const auto moved = impl_->own_cells.shift(sequence, p0, p1, delta);
      for (const auto& [index, layer] : impl_->layers.layers) impl_->rotate(index, moved);
    } catch (const std::bad_alloc&) {  // some positions are moved or keys turned, others not
      impl_->set_incomplete(sequence, Error::out_of_memory("out of memory shifting its positions"));
      throw;
    }
    return {};
  });
}

void Context::Impl::clear() {
  layers.clear();
  sequences.clear();
  if (keeps_cells()) own_cells.clear();
  may_have_ended.clear();
  cells_freed = false;
  forget_sequence(kAllSequences);
}

void Context::clear() { impl_->clear(); }

Position Context::last_position(SequenceId sequence) const { return impl_->own_cells.last_position(sequence); }

Status Context::rotate_keys(int layer, const RotateKeys& rotate, uint32_t thread, uint32_t n_threads) {
  ContextLayer* known = impl_->layers.find(layer);
  if (!known) return no_layer(layer);
  if (thread >= n_threads)
    return Error{"rotate_keys: thread " + std::to_string(thread) + " of " + std::to_string(n_threads)};
  return guarded([&]() -> Status {
    impl_->sequences.for_each_segment([&](SegmentId segment) {
      const uint32_t stream = impl_->sequences.stream_of_segment(segment);
      const auto visit = [&](std::span<const Cell> cells, uint32_t, std::span<float> keys) {
        return rotate(stream, cells, keys);
      };
      known->cache->visit_keys(segment, visit, thread, n_threads);
    });
    return {};
  });
}

Status Context::forget_removed() {
  return guarded([&] { return impl_->forget_freed_cells(); });
}

Status Context::compress() {
  return guarded([&]() -> Status {
    Status first;
    impl_->sequences.for_each_segment([&](SegmentId segment) {
      if (!impl_->layers.any_staged(segment, 1)) return;
      const Status status = impl_->commit_prompt(segment);
      if (first && !status) first = status;
    });
    return first;
  });
}

uint64_t Context::read_f16(int layer, uint32_t stream, uint16_t* k, size_t k_stride, uint16_t* v,
                           size_t v_stride) const {
  const ContextLayer* known = impl_->layers.find(layer);
  if (!known) return 0;
  const LayerCache& cache = *known->cache;
  uint64_t n = 0;
  impl_->sequences.for_each_segment([&](SegmentId segment) {
    if (impl_->sequences.stream_of_segment(segment) != stream) return;
    cache.read_f16(segment, k, k_stride, v, v_stride);
    n += cache.spec().uncompressed() ? cache.n_cells(segment) : cache.n_staged(segment);
  });
  return n;
}

}  // namespace mikv
