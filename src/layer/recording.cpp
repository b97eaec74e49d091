#include "layer/recording.hpp"

#include <array>
#include <cmath>

namespace mikv::attention {
namespace {

// Logits that a thread keeps of a chunk's tile: 4 MiB, 10,900 tokens of kTileRows rows. Writing and reading a logit
// costs a twentieth of computing it again.
constexpr size_t kKeptLogits = size_t{1} << 20;

// The rows are taken for the last tokens that were put in the segment, which they are unless several sequences share
// the call.
void sample_queries(const Call& call, const QueryTile& tile, const tier::SegmentStore& segment, tier::HeadStore& head) {
  if (call.args.n_tokens > segment.n_last_staged()) return;
  const uint32_t last = segment.next_arrival() - 1, first = last + 1 - call.args.n_tokens + tile.first_token;
  for (uint32_t r = 0; r < tile.n_rows(); ++r) {
    const uint32_t arrival = first + r / tile.group();
    if (!tier::QuerySample::takes(arrival, last)) continue;
    head.queries.sample.note(arrival, r % tile.group(), tile.group(), tile.query(r), call.layer.shape.head_dim_k,
                             call.args.scale);
  }
}

// Means of attention, 1 / t of the t live cells that a token sees, into slot.means: what counts is above it. Softmax of
// equal logits is the mean but for the error of exp, and must not count.
void note_means(const Call& call, const QueryTile& tile, ThreadSlot& slot) {
  constexpr float kMargin = 1.0f + 0x1p-10f;
  const Mask& mask = call.args.mask;
  slot.means.assign(tile.n_tokens, kMargin / float(std::max<uint64_t>(1, call.n_live)));
  if (mask.type == Mask::Type::none) return;
  const uint32_t n_cells = n_cells_of(call);
  slot.mask_row.resize(n_cells);
  for (uint32_t t = 0; t < tile.n_tokens; ++t) {
    kernels().mask_range(mask, tile.first_token + t, 1, n_cells, slot.mask_row.data(), slot.mask_row.data());
    uint64_t n_seen = 0;
    for (const tier::SegmentStore* segment : call.segments) {
      const auto live = segment->live().words();
      for (uint32_t cell = 0; cell < segment->live().end(); ++cell) {
        n_seen += (live[cell / 64] >> cell % 64 & 1) && slot.mask_row[cell] != -INFINITY;
      }
    }
    slot.means[t] = kMargin / float(std::max<uint64_t>(1, n_seen));
  }
}

// Zeroes the first n. It never shrinks, so that room grows by more than a token at a time, and most steps of a head
// that keeps every token allocate nothing.
void clear_sums(ThreadSlot& slot, size_t n) {
  if (slot.sums.size() < n) slot.sums.resize(n);
  std::fill_n(slot.sums.begin(), n, 0.0f);
}

// Calls visit(i) for those of n tokens that one row attends to, in slot.sums, above the mean.
template <typename Visit>
void for_each_above_mean(const ThreadSlot& slot, uint32_t token, size_t n, Visit visit) {
  for (size_t i = 0; i < n; ++i) {
    if (slot.sums[i] > slot.means[token]) visit(i);
  }
}

// One row of `rows` alone, without Rows::outliers, and what it sees.
Rows row_of(const Rows& rows, uint32_t r, const Geometry& geometry) {
  const size_t pair = r * geometry.pairs_k.size(), group = size_t{r} * geometry.groups_k;
  return {1,
          rows.q + pair * kLanes,
          rows.bias + r,
          rows.q_sums + group,
          rows.q_integers ? rows.q_integers + pair * kQueryIntegerBytes : nullptr,
          rows.q_scales ? rows.q_scales + group : nullptr};
}
QueryMask mask_of_row(QueryMask mask, uint32_t r, uint32_t group) {
  mask.first_token += r / group;
  mask.group = 1;
  if (mask.slopes) mask.slopes += r % group;
  return mask;
}

void forget_scores(tier::Tier& tier) {
  for (uint32_t slot = 0; slot < tier.size(); ++slot) {
    tier.set_score(slot, std::copysign(0.0f, tier.score(slot)), tier.arrival(slot));
  }
}

}  // namespace

void note_queries(const Call& call, const QueryTile& tile) {
  if (!call.args.record) return;
  for (tier::SegmentStore* segment : call.segments) {
    tier::HeadStore& head = segment->heads()[tile.kv_head];
    if (head.queries.empty()) continue;
    tier::QueryTally tally;
    for (uint32_t r = 0; r < tile.n_rows(); ++r) tally.add(tile.query(r), call.layer.shape.head_dim_k, call.args.scale);
    head.queries.note(tally);
    sample_queries(call, tile, *segment, head);
  }
}

void add_step_scores(const Call& call, const QueryTile& tile, const RowState& state, ThreadSlot& slot) {
  const auto kept_of = [&](uint32_t split) -> KeptLogits& {
    return call.workspace.partial(call.head_index(tile.kv_head), split).kept;
  };
  if (call.recording.above_mean) note_means(call, tile, slot);
  for (uint32_t split = 0; split < call.n_splits; ++split) kept_of(split).begin(tile.n_rows());
  for (const TierOfHead& at : slot.tiers) {  // of this head: the thread has just had a split of it
    if (!at.scored()) continue;
    tier::Tier& tier = *at.tier;
    const uint32_t n = tier.size();
    std::array<KeptLogits::Part, Workspace::Impl::kMaxSplits> parts;
    for (uint32_t split = 0; split < call.n_splits; ++split)
      parts[split] = kept_of(split).next(cut(at, split + 1, call.n_splits) - cut(at, split, call.n_splits));
    const auto sum_rows = [&](uint32_t first_row, uint32_t n_rows) {
      clear_sums(slot, n);
      size_t first = 0;
      for (const KeptLogits::Part& part : std::span(parts).first(call.n_splits)) {
        if (first >= n || part.n_blocks == 0) continue;
        kernels().score_kept(part.logits + first_row * part.stride(), part.stride(),
                             uint32_t(std::min(n - first, part.stride())), n_rows, state.max.data() + first_row,
                             slot.inverse_sum.data() + first_row, slot.sums.data() + first);
        first += part.stride();
      }
    };
    if (!call.recording.above_mean) {
      sum_rows(0, tile.n_rows());
      for (uint32_t i = 0; i < n; ++i) tier.add_score(i, slot.sums[i]);
      continue;
    }
    for (uint32_t r = 0; r < tile.n_rows(); ++r) {
      sum_rows(r, 1);
      for_each_above_mean(slot, 0, n, [&](size_t i) { tier.add_score(uint32_t(i), 1.0f); });
    }
  }
}

bool scores_tile(const Call& call, const QueryTile& tile) {
  return call.scoring(tile.kv_head) &&
         tile.first_token + tile.n_tokens > call.recording.first_query(call.args.n_tokens);
}

void begin_tile_logits(const QueryTile& tile, ThreadSlot& slot) { slot.kept.begin(tile.n_rows(), kKeptLogits); }

void add_tile_scores(const Call& call, const QueryTile& tile, const QueryMask& mask, const Scratch& scratch,
                     ThreadSlot& slot) {
  const uint32_t first_counted = call.recording.first_query(call.args.n_tokens);
  const float softcap = call.args.softcap;
  for (uint32_t r = 0; tile.first_token + r / tile.group() < first_counted; ++r)
    slot.inverse_sum[r] = 0.0f;  // adds none

  if (call.recording.above_mean) note_means(call, tile, slot);
  std::vector<float>& scores = slot.scores[call.head_index(tile.kv_head)];
  size_t first = 0;
  begin_tile_logits(tile, slot);
  for_each_tier(
      call, tile, slot, [&](const TierOfHead& at, const BlockSpan& span, const Rows& rows, auto, const TierOfHead*) {
        if (!at.scored()) return;
        const size_t last = first + span.n_tokens;
        if (scores.size() < last) scores.resize(last, 0.0f);
        const KeptLogits::Part kept = slot.kept.next(at.tier->n_blocks());
        const auto score = [&](const Rows& counted, const QueryMask& seen, uint32_t row, float* sums) {
          const float *max = slot.state.max.data() + row, *inverse = slot.inverse_sum.data() + row;
          const uint32_t n_kept = uint32_t(std::min<size_t>(span.n_tokens, kept.stride()));
          kernels().score_kept(kept.logits + row * kept.stride(), kept.stride(), n_kept, counted.n, max, inverse, sums);
          kernels().score(span, kept.n_blocks, at.tier->n_blocks(), counted, seen, softcap, max, inverse, sums,
                          scratch);
        };
        if (call.recording.above_mean) {
          for (uint32_t r = 0; r < rows.n; ++r) {
            if (slot.inverse_sum[r] == 0.0f) continue;
            clear_sums(slot, span.n_tokens);
            Rows row = row_of(rows, r, *span.geometry);
            const Rows outliers = span.outliers ? row_of(*rows.outliers, r, *span.outlier_geometry) : Rows();
            row.outliers = &outliers;
            score(row, mask_of_row(mask, r, tile.group()), r, slot.sums.data());
            for_each_above_mean(slot, r / tile.group(), span.n_tokens, [&](size_t i) { scores[first + i] += 1.0f; });
          }
        } else {
          score(rows, mask, 0, scores.data() + first);
        }
        first = last;
      });
}

void add_chunk_scores(const Call& call, uint32_t kv_head) {
  if (call.recording.starts_anew(call.args.n_tokens)) {
    for (tier::SegmentStore* segment : call.segments) {
      forget_scores(segment->heads()[kv_head].staged);
      forget_scores(segment->heads()[kv_head].hi);
    }
  }
  const size_t head_index = call.head_index(kv_head);
  for (ThreadSlot& slot : call.workspace.threads) {
    std::vector<float>& scores = slot.scores[head_index];
    size_t first = 0;
    const auto add = [&](tier::Tier& tier) {
      for (uint32_t i = 0; i < tier.size() && first + i < scores.size(); ++i) tier.add_score(i, scores[first + i]);
      first += tier.size();
    };
    for (tier::SegmentStore* segment : call.segments) {
      add(segment->heads()[kv_head].staged);
      add(segment->heads()[kv_head].hi);
    }
    std::fill(scores.begin(), scores.end(), 0.0f);
  }
}

}  // namespace mikv::attention
