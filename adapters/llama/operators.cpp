// What the nodes do that took the place of llama.cpp's own (graph_rewrite.cpp): they store K and V of a batch, and
// attend.
#include <algorithm>

#include "binding.hpp"

namespace mikv::llama {
namespace {

int64_t index_at(const ggml_tensor* indices, int64_t i) {
  const char* at = static_cast<const char*>(indices->data) + i * int64_t(indices->nb[0]);
  if (indices->type == GGML_TYPE_I32) return *reinterpret_cast<const int32_t*>(at);
  return *reinterpret_cast<const int64_t*>(at);
}

}  // namespace

// Rows of a unified cache come in the order of the batch; otherwise a stream has the tokens of one sequence.
const StepPlan::Run* Binding::run_of_row(uint32_t stream, uint32_t row) const {
  if (!sequences_.unified()) return plan_.run_of(llama_seq_id(stream));
  for (const StepPlan::Run& run : plan_.runs()) {
    if (row < run.first + run.n) return &run;
  }
  return nullptr;
}

std::span<const Binding::Part> Binding::parts_of(const Layer& layer, const ggml_tensor* indices, int64_t n_rows) {
  size_t n_parts = 0;
  for (int64_t row = 0; row < n_rows; ++row) {
    const uint32_t stream = uint32_t(index_at(indices, row) / layer.cells_per_stream);
    const StepPlan::Run* run = run_of_row(stream, layer.first_row + uint32_t(row));
    if (!run) {
      fail(
          "llama.cpp stores a token that is in no batch mikv has seen; use the llama.cpp version that mikv is built "
          "for");
      return {};
    }
    size_t p = 0;
    while (p < n_parts && parts_[p].segment != run->segment) ++p;
    if (p == n_parts) {
      if (++n_parts > parts_.size()) parts_.emplace_back();
      parts_[p].segment = run->segment;
      parts_[p].stream = stream;
      parts_[p].generates = false;
      parts_[p].cells.clear();
      parts_[p].rows.clear();
    }
    parts_[p].generates |= run->generates;
    parts_[p].cells.push_back(Cell(index_at(indices, row) % layer.cells_per_stream));
    parts_[p].rows.push_back(uint32_t(row));
  }
  return std::span(parts_).first(n_parts);
}

Status Binding::stage(Layer& layer, std::span<const Part> parts) {
  // A sliding window may reuse cells of another sequence. All of them are forgotten before anything is staged: what is
  // erased afterwards would move tokens that wait for their values.
  for (const Part& part : parts) {
    sequences_.for_each_segment([&](SegmentId segment) {
      if (segment != part.segment && sequences_.stream_of_segment(segment) == part.stream)
        layer.cache->erase(segment, part.cells);
    });
  }
  for (const Part& part : parts) {
    // A generated token ends the prompt before it: what is still staged is compressed first.
    Status status = part.generates ? layer.cache->commit(part.segment, pressed(kFirstTokens)) : Status();
    if (status) status = layer.cache->stage(part.segment, part.cells);
    if (!status) return status;
  }
  return {};
}

void Binding::store(Layer& layer, const OpData& op, const ggml_tensor* node) {
  if (!failure()) return;  // not everything was staged
  const ggml_tensor *rows = node->src[0], *indices = node->src[1];
  if (!op.last_half) {
    layer.first_row = layer.next_row;
    layer.next_row += uint32_t(rows->ne[1]);
  }
  const std::span<const Part> parts = parts_of(layer, indices, rows->ne[1]);
  if (!op.last_half) {
    if (const Status status = stage(layer, parts); !status) return fail(status.error());
  }
  const auto write = op.kind == OpKind::store_k ? &LayerCache::write_k : &LayerCache::write_v;
  const size_t stride = rows->nb[1] / sizeof(float), row_floats = size_t(rows->ne[0]);
  for (const Part& part : parts) {
    const float* data = static_cast<const float*>(rows->data);
    if (part.rows.back() - part.rows.front() + 1 == part.rows.size()) {
      (layer.cache.get()->*write)(part.segment, data + part.rows.front() * stride, stride, 0, 1);
      continue;
    }
    gathered_.clear();
    for (const uint32_t row : part.rows)
      gathered_.insert(gathered_.end(), data + row * stride, data + row * stride + row_floats);
    (layer.cache.get()->*write)(part.segment, gathered_.data(), row_floats, 0, 1);
  }
  if (op.last_half && engine_attends_) copy_rows(layer);
}

void Binding::copy_rows(const Layer& layer) {
  sequences_.for_each_segment([&](SegmentId segment) {
    row_copy_.fill(*layer.cache, segment, size_t{sequences_.stream_of_segment(segment)} * layer.cells_per_stream);
  });
}

void Binding::redirect(ggml_tensor* attention) {
  size_t k_bytes = 0, v_bytes = 0;
  for (const auto& [index, layer] : layers_) {
    k_bytes = std::max(k_bytes, ggml_nbytes(layer.k_tensor));
    v_bytes = std::max(v_bytes, ggml_nbytes(layer.v_tensor));
  }
  if (!row_copy_.reserve(k_bytes, v_bytes))
    return fail("no address space for a copy of one layer's keys and values; use a smaller context");
  row_copy_.redirect(attention);
}

AttendArgs Binding::rows_args(const Layer& layer, ggml_tensor* node, int64_t stream, uint32_t first, uint32_t n) const {
  const ggml_tensor *q = node->src[0], *mask = node->src[3], *sinks = node->src[4];
  const AttentionParams params = attention_params(node);
  AttendArgs args;
  args.q = reinterpret_cast<const float*>(static_cast<const char*>(q->data) + stream * int64_t(q->nb[3]) +
                                          first * int64_t(q->nb[1]));
  args.q_token_stride = q->nb[1] / sizeof(float);
  args.q_head_stride = q->nb[2] / sizeof(float);
  args.out = reinterpret_cast<float*>(static_cast<char*>(node->data) + stream * int64_t(node->nb[3]) +
                                      first * int64_t(node->nb[2]));
  args.out_head_stride = node->nb[1] / sizeof(float);
  args.out_token_stride = node->nb[2] / sizeof(float);
  args.n_tokens = n;
  args.scale = params.scale;
  args.softcap = params.softcap;
  if (mask) {
    args.mask = {mask->type == GGML_TYPE_F16 ? Mask::Type::f16 : Mask::Type::f32,
                 static_cast<const char*>(mask->data) + (stream % mask->ne[3]) * int64_t(mask->nb[3]) +
                     first * int64_t(mask->nb[1]),
                 mask->nb[1], uint32_t(mask->ne[0])};
  }
  if (!layer.slopes.empty()) args.mask_slopes = layer.slopes.data();
  if (sinks) args.sinks = static_cast<const float*>(sinks->data);
  return args;
}

bool commits_from(uint32_t from, const LayerCache& cache, SegmentId segment, uint32_t n_to_come) {
  const uint64_t n_staged = cache.n_staged(segment);
  return cache.n_cells(segment) > n_staged || n_staged + n_to_come >= from;
}

bool Binding::commits(const StepPlan::Run& run) const {
  if (run.single || run.generates) return run.single;
  return pressed_from_ || spec_.prefill == Prefill::streaming;
}

uint32_t Binding::commit_from(const StepPlan::Run& run) const {
  if (run.single || run.generates) return pressed(kFirstTokens);
  return pressed(spec_.prefill == Prefill::streaming ? run.n_streamed : UINT32_MAX);
}

uint32_t Binding::pressed(uint32_t n_tokens) const { return std::min(n_tokens, pressed_from_.value_or(n_tokens)); }

void Binding::attend(Layer& layer, ggml_tensor* node, uint32_t thread, uint32_t n_threads) {
  const uint32_t usable = std::min(n_threads, workspace_.max_threads());
  if (thread >= usable) return;  // more threads than at creation (llama_set_n_threads): the rest have nothing to do
  thread_local std::vector<AttendArgs> calls;
  calls.clear();
  const auto add_call = [&](const StepPlan::Run& run, std::span<const SegmentId> segments, int64_t stream,
                            uint32_t first, uint32_t n) {
    AttendArgs& call = calls.emplace_back(rows_args(layer, node, stream, first, n));
    call.segments = segments;
    call.commit = commits(run);
    call.commit_from = commit_from(run);
  };
  const ggml_tensor *q = node->src[0], *k = node->src[1];
  const uint32_t n_rows = uint32_t(q->ne[1]);
  if (sequences_.unified()) {
    const uint32_t first_row = layer.first_row;
    uint32_t group = UINT32_MAX;
    for (const StepPlan::Run& run : plan_.runs()) {
      const uint32_t begin = std::max(run.first, first_row), end = std::min(run.first + run.n, first_row + n_rows);
      if (begin >= end) continue;
      if (run.group == group) {
        calls.back().n_tokens += end - begin;
        calls.back().commit = false;  // not all of its segments may be ready for it
      } else {
        add_call(run, plan_.segments_of_group(run.group), 0, begin - first_row, end - begin);
      }
      group = run.group;
    }
  } else {
    const int64_t n_streams = k->ne[3], first_stream = k->nb[3] ? int64_t(k->view_offs / k->nb[3]) : 0;
    for (int64_t s = 0; s < n_streams; ++s) {
      const StepPlan::Run* run = plan_.run_of(llama_seq_id(first_stream + s));
      if (!run)
        return fail(
            "llama.cpp attends a sequence that is in no batch mikv has seen; use the llama.cpp version that mikv is "
            "built for");
      add_call(*run, sequences_.seen_by(run->sequence), s, 0, n_rows);
    }
  }
  if (const Status status = layer.cache->attend(calls, workspace_, thread, usable); !status) fail(status.error());
}

}  // namespace mikv::llama
