// Context::store: which segment each token of a call goes to, and its keys and values in there.
#include <algorithm>

#include "context/context_impl.hpp"

namespace mikv {

using context::ContextLayer;
using context::guarded;
using context::kFirstTokens;
using context::no_layer;
using context::no_second_half;
using context::StepPlan;

// Rows of a unified context come in the order of the batch; otherwise a stream has the tokens of one sequence.
const StepPlan::Run* Context::Impl::run_of_row(uint32_t stream, uint32_t row) const {
  if (!sequences.unified()) return plan.run_of(SequenceId(stream));
  for (const StepPlan::Run& run : plan.runs()) {
    if (row < run.first + run.n) return &run;
  }
  return nullptr;
}

Result<std::span<const Context::Impl::Part>> Context::Impl::parts_of(const ContextLayer& layer,
                                                                     std::span<const CellPlace> cells) {
  size_t n_parts = 0;
  for (uint32_t row = 0; row < cells.size(); ++row) {
    const auto [stream, cell] = cells[row];
    const StepPlan::Run* run = run_of_row(stream, layer.first_row + row);
    if (!run) return Error{"a token is stored that is in no batch of this step"};
    size_t p = 0;
    while (p < n_parts && parts[p].segment != run->segment) ++p;
    if (p == n_parts) {
      if (++n_parts > parts.size()) parts.emplace_back();
      parts[p].segment = run->segment;
      parts[p].stream = stream;
      parts[p].generates = parts[p].measured = false;
      parts[p].sequence = run->sequence;
      parts[p].cells.clear();
      parts[p].rows.clear();
    }
    parts[p].generates |= run->generates;
    parts[p].measured |= run->measured;
    parts[p].cells.push_back(cell);
    parts[p].rows.push_back(row);
  }
  return std::span<const Part>(parts).first(n_parts);
}

Status Context::Impl::stage(ContextLayer& layer, std::span<const Part> of_call) {
  // A sliding window may reuse cells of another sequence. All of them are forgotten before anything is staged: what is
  // erased afterwards would move tokens that wait for their values.
  for (const Part& part : of_call) {
    sequences.for_each_segment([&](SegmentId segment) {
      if (segment != part.segment && sequences.stream_of_segment(segment) == part.stream) {
        layer.cache->erase(segment, part.cells);
      }
    });
  }
  // What commit_before_generation() had no memory for.
  for (const Part& part : of_call) {
    if (!part.generates || waits(layer, part.segment)) continue;
    const uint32_t from = context::pressed(kFirstTokens, pressed_from());
    if (const Status status = layer.cache->commit(part.segment, from); !status) return status;
  }
  for (const Part& part : of_call) {
    const std::span<const uint8_t> marks = punctuation.of(layer, part.stream, part.rows);
    if (const Status status = layer.cache->stage(part.segment, part.cells, marks); !status) return status;
  }
  return {};
}

void Context::Impl::count_measured(const ContextLayer& layer, std::span<const Part> of_call) {
  if (&layer != &layers.layers.begin()->second) return;
  for (const Part& part : of_call) {
    if (!part.measured) continue;
    figures.n_measured += part.rows.size();
    for (const SegmentId segment : sequences.seen_by(part.sequence)) {
      const context::SegmentCount count = layer.count(segment);
      figures.n_measured_seen += part.rows.size() * count.n_cells;
      if (!spec().uncompressed()) figures.n_measured_compressed += part.rows.size() * (count.n_cells - count.n_staged);
    }
  }
}

void Context::Impl::write(ContextLayer& layer, std::span<const Part> of_call, const float* rows, size_t stride,
                          bool keys) {
  const LayerShape& shape = layer.cache->shape();
  const size_t row_floats = size_t{shape.n_kv_heads} * (keys ? shape.head_dim_k : shape.head_dim_v);
  const auto put = keys ? &LayerCache::write_k : &LayerCache::write_v;
  for (const Part& part : of_call) {
    if (part.rows.back() - part.rows.front() + 1 == part.rows.size()) {
      (layer.cache.get()->*put)(part.segment, rows + part.rows.front() * stride, stride, 0, 1);
      continue;
    }
    gathered.clear();
    for (const uint32_t row : part.rows) {
      gathered.insert(gathered.end(), rows + row * stride, rows + row * stride + row_floats);
    }
    (layer.cache.get()->*put)(part.segment, gathered.data(), row_floats, 0, 1);
  }
}

Result<std::span<const CellPlace>> Context::Impl::taken(uint32_t first, uint64_t n) const {
  const auto all = own_cells.taken();
  if (n > all.size() - std::min<size_t>(first, all.size())) return Error{"more tokens are stored than the batch has"};
  return all.subspan(first, n);
}

Status Context::store(int layer, std::span<const CellPlace> cells, const float* k, size_t k_stride, const float* v,
                      size_t v_stride, uint32_t n_tokens) {
  ContextLayer* known = impl_->layers.find(layer);
  if (!known) fail(no_layer(layer));
  if (const Status failed = impl_->failure(); !failed) return failed;  // not everything was staged
  impl_->layers.go_to(known);
  const Status stored = guarded([&]() -> Status {
    const bool completes =
        (known->wants_k || known->wants_v) && known->wants_k == (k != nullptr) && known->wants_v == (v != nullptr);
    if (!completes && (known->wants_k || known->wants_v)) return no_second_half(layer);
    if (!completes) known->first_row = known->next_row;
    if (impl_->keeps_cells()) {
      const auto taken = impl_->taken(known->first_row, n_tokens);
      if (!taken) return taken.error();
      cells = taken.value();
    }
    if (completes && cells.size() != known->next_row - known->first_row)
      return Error{"store: the values of a call of its own must be of as many tokens as the keys"};
    const LayerShape& shape = known->cache->shape();
    if ((k && k_stride < size_t{shape.n_kv_heads} * shape.head_dim_k) ||
        (v && v_stride < size_t{shape.n_kv_heads} * shape.head_dim_v)) {
      return Error{"store: a row stride is smaller than a row"};
    }
    const auto parts = impl_->parts_of(*known, cells);
    if (!parts) return parts.error();
    if (!completes) {
      known->next_row += uint32_t(cells.size());
      if (const Status status = impl_->stage(*known, parts.value()); !status) return status;
      impl_->count_measured(*known, parts.value());
      if (impl_->keeps_cells()) impl_->make_masks(*known);
      known->wants_k = !k;
      known->wants_v = !v;
    } else {
      known->wants_k = known->wants_v = false;
    }
    if (k) impl_->write(*known, parts.value(), k, k_stride, true);
    if (v) impl_->write(*known, parts.value(), v, v_stride, false);
    return {};
  });
  if (!stored) impl_->fail(stored.error());
  return stored;
}

}  // namespace mikv
