// LayerCache::attend: cuts the work of a call into items for the threads, and runs the kernels over staged, hi and lo.
//
// A generation step (one query token) has an item for each KV head, and in long contexts several that split the blocks;
// the thread that finishes a head last merges, writes the output, adds the importance scores from kept logits and
// commits the head. A chunk (more tokens) has an item for each KV head and tile of tokens, each with its own output.
// Scores need the finished softmax: they come from kept logits too, and where these have no room, from a second QK
// pass. They are summed per thread and then over threads, so that the result does not depend on timing. No barrier is
// needed in either case.
#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "layer/rows.hpp"

namespace mikv {
namespace attention {
namespace {

// Rows of a chunk's tile: enough that decoding a tile is a few per cent of using it, few enough for the L2 cache.
constexpr uint32_t kTileRows = 96;
// Logits that a thread keeps of a chunk's tile: 4 MiB, 10,900 tokens of kTileRows rows. Writing and reading a logit
// costs a twentieth of computing it again.
constexpr size_t kKeptLogits = size_t{1} << 20;
// Tokens of a split of a generation step: enough that one more softmax state is a few per cent of its work.
constexpr uint32_t kSplitTokens = 2048, kLeastSplitTokens = 512;
// With more KV heads, splits of kSplitTokens keep 16 threads busy.
constexpr uint32_t kFewHeads = 4;

struct Call {
  const LayerAttendArgs& args;
  LayerCache::Impl& layer;
  Workspace::Impl& workspace;
  uint32_t first_head;  // of this call, in the workspace's numbering
  const std::vector<tier::SegmentStore*>& segments;
  uint64_t n_live = 0;  // cells
  uint32_t n_splits = 1, n_tiles = 1, tile_tokens = 1;
  policy::Recording recording = policy::recording_of(layer.spec);

  bool step() const { return args.n_tokens == 1; }
  uint32_t n_heads() const { return layer.shape.n_kv_heads; }
  uint32_t items_per_head() const { return step() ? n_splits : n_tiles; }
  double item_cost() const { return double((n_live / n_splits + kLanes) * tile_tokens); }
  // Whether a KV head's scores record this call. The same for all of its items: they are done before it is committed.
  bool scoring(uint32_t kv_head) const {
    const auto compressed = [kv_head](const tier::SegmentStore* segment) {
      return segment->heads()[kv_head].compressed();
    };
    return args.record && recording.counts(args.n_tokens, std::ranges::any_of(segments, compressed));
  }
  size_t head_index(uint32_t kv_head) const { return first_head + kv_head; }
};

// segments: memory for the call's. How a call is cut does not depend on the number of threads, so that neither do the
// results: sums are rounded in the order in which they are cut.
Call plan(const LayerAttendArgs& args, LayerCache::Impl& layer, Workspace::Impl& workspace, uint32_t first_head,
          std::vector<tier::SegmentStore*>& segments) {
  segments.clear();
  if (args.segments.empty()) {
    for (const auto& segment : layer.segments) {
      if (segment) segments.push_back(segment.get());
    }
  }
  for (const SegmentId id : args.segments) {
    if (tier::SegmentStore* segment = layer.segment(id)) segments.push_back(segment);
  }
  Call call{args, layer, workspace, first_head, segments};
  // Live cells, not stored tokens: a faster thread may be committing a head already, and all must cut alike.
  for (const tier::SegmentStore* segment : segments) call.n_live += segment->n_live();
  if (call.step()) {
    const uint32_t split_tokens = call.n_heads() <= kFewHeads ? kLeastSplitTokens : kSplitTokens;
    call.n_splits = uint32_t(std::clamp<uint64_t>(call.n_live / split_tokens, 1, Workspace::Impl::kMaxSplits));
    return call;
  }
  const uint32_t group = layer.shape.n_heads / call.n_heads();
  call.tile_tokens = std::max(1u, std::min(kTileRows / group, (args.n_tokens + 3) / 4));
  call.n_tiles = (args.n_tokens + call.tile_tokens - 1) / call.tile_tokens;
  return call;
}

// Hands every thread items that follow each other, of about the same cost in all: a thread that has several of a head
// reads on where it stopped.
struct Shares {
  uint32_t n_threads;
  double total = 0.0, before = 0.0;  // cost; whole numbers, hence the same in all threads

  // The thread's part of the next n items.
  std::pair<uint32_t, uint32_t> next(uint32_t thread, uint32_t n, double cost) {
    // The first item whose middle is in the share of thread t or later.
    const auto first = [&](uint32_t t) {
      return uint32_t(std::clamp(std::ceil((total * t / n_threads - before) / cost - 0.5), 0.0, double(n)));
    };
    const std::pair<uint32_t, uint32_t> result{first(thread), first(thread + 1)};
    before += n * cost;
    return result;
  }
};

BlockSpan span_of(const tier::Tier& tier, const Geometry& geometry) {
  return {tier.blocks(), &tier.layout(), &geometry, tier.size(), {}};
}

// The same of a tier whose outlier channels are halves; `wide` is memory for their layout.
BlockSpan wide_span_of(const tier::Tier& tier, const LayerCache::Impl& layer, codec::BlockLayout& wide) {
  BlockSpan span = span_of(tier, layer.tier_geometry);
  if (!layer.spec.outlier_channels) return span;
  const bool halves = tier.layout().bits == 16;  // all of its tiles: only the first ones are read as wide
  wide = halves ? tier.layout() : tier.layout().wide_part();
  if (halves) wide.tiles_k = wide.tiles_v = wide_channels(layer.spec) / codec::kTileSide;
  span.wide = &wide;
  span.wide_geometry = &layer.wide_geometry;
  return span;
}

Scratch scratch_for(ThreadSlot& slot, const LayerCache::Impl& layer, uint32_t n_rows) {
  const uint32_t n_tiles = std::max(layer.layouts->staged.tiles_k, layer.layouts->staged.tiles_v);
  slot.logits.resize(size_t{n_rows} * kStepTokens);
  slot.decoded.resize(size_t{kStepBlocks} * n_tiles * kLanes * kLanes);
  slot.weights.resize(size_t{kMaxKernelRows} * kStepTokens);
  slot.factors.resize(padded_rows(n_rows));
  return {slot.logits.data(), slot.factors.data(), slot.decoded.data(), slot.weights.data()};
}

// Cells that a mask is read for: up to the last live one of all segments.
uint32_t n_cells_of(const Call& call) {
  uint32_t n_cells = 0;
  for (const tier::SegmentStore* segment : call.segments) n_cells = std::max(n_cells, segment->live().end());
  return n_cells;
}

MaskTile mask_for(const Call& call, const RowTile& tile, ThreadSlot& slot) {
  const Mask& mask = call.args.mask;
  if (mask.type == Mask::Type::none) return {};
  bool all_seen = true;
  for (const tier::SegmentStore* segment : call.segments) {
    const auto live = segment->live().words();
    all_seen = all_seen && kernels().sees_all(mask, tile.first_token, tile.n_tokens, live.data(), live.size());
  }
  if (all_seen) return {};
  const uint32_t n_cells = n_cells_of(call);
  slot.mask_low.resize(n_cells);
  slot.mask_high.resize(tile.n_tokens > 1 ? n_cells : 0);
  float* high = tile.n_tokens > 1 ? slot.mask_high.data() : slot.mask_low.data();
  kernels().mask_range(mask, tile.first_token, tile.n_tokens, n_cells, slot.mask_low.data(), high);
  const float* slopes = call.args.mask_slopes ? call.args.mask_slopes + tile.kv_head * tile.group() : nullptr;
  return {&mask, slot.mask_low.data(), high, tile.first_token, tile.group(), slopes};
}

// The tier's first block in split i of n. Splits are equal parts of the head's blocks, tier after tier, in whole steps
// of the kernels.
uint32_t cut(const TierOfHead& at, uint32_t i, uint32_t n) {
  const uint64_t in_head = at.n_head_blocks * i / n, n_blocks = at.tier->n_blocks();
  if (in_head <= at.first_block) return 0;
  const uint64_t in_tier = in_head - at.first_block;
  if (in_tier >= n_blocks) return uint32_t(n_blocks);
  return uint32_t(std::min((in_tier + kStepBlocks / 2) / kStepBlocks * kStepBlocks, n_blocks));
}

// A step of blocks [begin, end).
std::span<const uint8_t> first_step(const tier::Tier& tier, uint32_t begin, uint32_t end) {
  const size_t stride = tier.layout().bytes;
  return {tier.blocks() + begin * stride, std::min(end - begin, kStepBlocks) * stride};
}

// The tiers of a head, into slot.tiers.
void find_tiers(const Call& call, uint32_t kv_head, ThreadSlot& slot) {
  slot.tiers.clear();
  uint64_t n_blocks = 0;
  for (tier::SegmentStore* segment : call.segments) {
    tier::HeadStore& head = segment->heads()[kv_head];
    for (tier::Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      if (!tier->size()) continue;
      slot.tiers.push_back({&head, tier, n_blocks});
      n_blocks += tier->n_blocks();
    }
  }
  for (TierOfHead& at : slot.tiers) at.n_head_blocks = n_blocks;
}

// Calls work(tier, span, rows, view, next) for every non-empty tier of the head: view(state) is what the kernels see
// of a state there, next the tier that follows or null.
template <typename Work>
void for_each_tier(const Call& call, const RowTile& tile, ThreadSlot& slot, Work work) {
  const LayerCache::Impl& layer = call.layer;
  find_tiers(call, tile.kv_head, slot);
  Rows raw, rows, wide;
  codec::BlockLayout wide_layout;
  const codec::Transform* prepared = nullptr;
  for (size_t i = 0; i < slot.tiers.size(); ++i) {
    const TierOfHead at = slot.tiers[i];
    const TierOfHead* next = i + 1 < slot.tiers.size() ? &slot.tiers[i + 1] : nullptr;
    if (at.in_engine_coordinates()) {
      if (!raw.n) raw = prepare_raw(tile, slot.raw);
      work(
          at, span_of(*at.tier, layer.raw_geometry), raw, [&](RowState& state) { return raw_view(state, layer); },
          next);
      continue;
    }
    const codec::Transform& transform = at.head->transform_of(*at.tier);
    const codec::Axes &key = transform.key, &value = transform.value;
    if (prepared != &transform) {
      rows = prepare_for_tier(tile, key, slot.tier);
      if (layer.spec.outlier_channels) {
        wide = prepare_wide(tile, key, slot.wide);
        rows.wide = &wide;
      }
    }
    prepared = &transform;
    const Rows of_tier = at.scored() ? rows : with_expected_error(tile, key, at.tier->layout(), rows, slot.tier);
    work(
        at, wide_span_of(*at.tier, layer, wide_layout), of_tier,
        [&](RowState& state) { return tier_view(state, layer, tile.n_rows(), value); }, next);
  }
}

// The rows are taken for the last tokens that were put in the segment, which they are unless several sequences share
// the call.
void sample_queries(const Call& call, const RowTile& tile, const tier::SegmentStore& segment, tier::HeadStore& head) {
  if (call.args.n_tokens > segment.n_last_staged()) return;
  const uint32_t last = segment.next_arrival() - 1, first = last + 1 - call.args.n_tokens + tile.first_token;
  for (uint32_t r = 0; r < tile.n_rows(); ++r) {
    const uint32_t arrival = first + r / tile.group();
    if (!tier::QuerySample::takes(arrival, last)) continue;
    head.queries.sample.note(arrival, r % tile.group(), tile.group(), tile.query(r), call.layer.shape.head_dim_k,
                             call.args.scale);
  }
}

void note_queries(const Call& call, const RowTile& tile) {
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

// ---------------------------------------------------------------- a generation step

// Splits [first, last) one after the other in each span: the queries are prepared once. A split that has nothing of a
// tier takes its view of the state all the same: states that are merged have the same coordinates.
void run_splits(const Call& call, const RowTile& tile, uint32_t first, uint32_t last, ThreadSlot& slot) {
  const auto partial = [&](uint32_t split) -> Partial& {
    return call.workspace.partial(call.head_index(tile.kv_head), split);
  };
  for (uint32_t split = first; split < last; ++split) reset(partial(split).state, call.layer, tile.n_rows());
  const MaskTile mask = mask_for(call, tile, slot);
  const Scratch scratch = scratch_for(slot, call.layer, tile.n_rows());
  const bool scoring = call.scoring(tile.kv_head);
  size_t n_kept = 0;
  for_each_tier(
      call, tile, slot, [&](const TierOfHead& at, BlockSpan span, const Rows& rows, auto view, const TierOfHead* next) {
        const bool keeps = at.scored() && scoring;
        for (uint32_t split = first; split < last; ++split) {
          const uint32_t n = call.n_splits, begin = cut(at, split, n), end = cut(at, split + 1, n);
          const size_t n_kept_tokens = size_t{end - begin} * kLanes;
          float* keep = nullptr;
          if (keeps) {
            auto& kept = partial(split).kept;
            if (kept.size() == n_kept) kept.emplace_back();
            kept[n_kept].resize(rows.n * n_kept_tokens);
            keep = kept[n_kept].data();
          }
          const State state = view(partial(split).state);
          if (begin == end) continue;
          span.next = {};
          if (end < cut(at, last, n))
            span.next = first_step(*at.tier, end, cut(at, last, n));
          else if (next)
            span.next = first_step(*next->tier, cut(*next, first, n), cut(*next, last, n));
          kernels().attend(span, begin, end, rows, mask, call.args.softcap, state, keep, n_kept_tokens, scratch);
        }
        n_kept += keeps;
      });
}

// Means of attention, 1 / t of the t live cells that a token sees, into slot.means: what counts is above it. Softmax of
// equal logits is the mean but for the error of exp, and must not count.
void note_means(const Call& call, const RowTile& tile, ThreadSlot& slot) {
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

// Adds one row's counts, [n]: 1 where its attention, in slot.sums, is above the mean.
void add_counts(const ThreadSlot& slot, uint32_t token, float* counts, size_t n) {
  for (size_t i = 0; i < n; ++i) counts[i] += slot.sums[i] > slot.means[token];
}

// One row of `rows` alone, without Rows::wide, and what it sees.
Rows row_of(const Rows& rows, uint32_t r, const Geometry& geometry) {
  const size_t pair = r * geometry.pairs_k.size(), group = size_t{r} * geometry.groups_k;
  return {1,
          rows.q + pair * kLanes,
          rows.bias + r,
          rows.q_sums + group,
          rows.q_integers ? rows.q_integers + pair * kQueryIntegerBytes : nullptr,
          rows.q_steps ? rows.q_steps + group : nullptr};
}
MaskTile mask_of_row(MaskTile mask, uint32_t r, uint32_t group) {
  mask.first_token += r / group;
  mask.group = 1;
  if (mask.slopes) mask.slopes += r % group;
  return mask;
}

void add_kept_scores(const Call& call, const RowTile& tile, const TierOfHead& at, size_t kept_index,
                     const RowState& state, ThreadSlot& slot) {
  tier::Tier& tier = *at.tier;
  const uint32_t n = tier.size();
  const auto sum_rows = [&](uint32_t first_row, uint32_t n_rows) {
    clear_sums(slot, n);
    for (uint32_t split = 0; split < call.n_splits; ++split) {
      const auto& kept = call.workspace.partial(call.head_index(tile.kv_head), split).kept[kept_index];
      const uint32_t first = cut(at, split, call.n_splits) * kLanes, end = cut(at, split + 1, call.n_splits) * kLanes,
                     last = std::min(n, end);
      if (first >= last) continue;
      kernels().score_kept(kept.data() + size_t{first_row} * (end - first), end - first, last - first, n_rows,
                           state.max.data() + first_row, slot.inverse_sum.data() + first_row, slot.sums.data() + first);
    }
  };
  if (!call.recording.above_mean) {
    sum_rows(0, tile.n_rows());
    for (uint32_t i = 0; i < n; ++i) tier.add_score(i, slot.sums[i]);
    return;
  }
  for (uint32_t r = 0; r < tile.n_rows(); ++r) {
    sum_rows(r, 1);
    for (uint32_t i = 0; i < n; ++i) tier.add_score(i, slot.sums[i] > slot.means[0]);
  }
}

void finish_step(const Call& call, const RowTile& tile, ThreadSlot& slot) {
  const size_t head_index = call.head_index(tile.kv_head);
  RowState& state = call.workspace.partial(head_index, 0).state;
  for (uint32_t split = 1; split < call.n_splits; ++split) {
    merge(state, call.workspace.partial(head_index, split).state, tile.n_rows());
  }
  finish(tile, state, slot.inverse_sum);
  if (!call.scoring(tile.kv_head)) return;
  if (call.recording.above_mean) note_means(call, tile, slot);
  size_t kept_index = 0;
  for (const TierOfHead& at : slot.tiers) {  // of this head: the thread has just had a split of it
    if (at.scored()) add_kept_scores(call, tile, at, kept_index++, state, slot);
  }
}

// ---------------------------------------------------------------- a chunk of tokens

// The memory of ThreadSlot::kept, handed out to the scored tiers one after the other.
class KeptLogits {
 public:
  KeptLogits(ThreadSlot& slot, uint32_t n_rows) : slot_(slot), n_rows_(n_rows) {}

  struct Part {
    float* logits = nullptr;
    uint32_t n_blocks = 0;  ///< of the tier, from its first; whole steps, if it is not all
    size_t stride() const { return size_t{n_blocks} * kLanes; }
  };
  Part next(uint32_t n_blocks) {
    const size_t left = (kKeptLogits - used_) / (size_t{n_rows_} * kLanes);
    Part part;
    part.n_blocks = n_blocks <= left ? n_blocks : uint32_t(left / kStepBlocks * kStepBlocks);
    const size_t end = used_ + n_rows_ * part.stride();
    if (slot_.kept.size() < end) {
      slot_.kept.reserve(std::min(kKeptLogits, 2 * end));
      slot_.kept.resize(end);
    }
    part.logits = slot_.kept.data() + used_;
    used_ = end;
    return part;
  }

 private:
  ThreadSlot& slot_;
  uint32_t n_rows_;
  size_t used_ = 0;
};

void run_tile(const Call& call, const RowTile& tile, ThreadSlot& slot) {
  reset(slot.state, call.layer, tile.n_rows());
  const MaskTile mask = mask_for(call, tile, slot);
  const Scratch scratch = scratch_for(slot, call.layer, tile.n_rows());
  const float softcap = call.args.softcap;
  const uint32_t first_counted = call.recording.first_query(call.args.n_tokens);
  const bool scores_it = call.scoring(tile.kv_head) && tile.first_token + tile.n_tokens > first_counted;
  KeptLogits to_keep(slot, tile.n_rows());
  for_each_tier(
      call, tile, slot,
      [&](const TierOfHead& at, const BlockSpan& span, const Rows& rows, auto view, const TierOfHead*) {
        const State state = view(slot.state);
        KeptLogits::Part kept;
        if (scores_it && at.scored()) kept = to_keep.next(at.tier->n_blocks());
        kernels().attend(span, 0, kept.n_blocks, rows, mask, softcap, state, kept.logits, kept.stride(), scratch);
        kernels().attend(span, kept.n_blocks, at.tier->n_blocks(), rows, mask, softcap, state, nullptr, 0, scratch);
      });
  finish(tile, slot.state, slot.inverse_sum);
  if (!scores_it) return;
  for (uint32_t r = 0; tile.first_token + r / tile.group() < first_counted; ++r)
    slot.inverse_sum[r] = 0.0f;  // adds none

  if (call.recording.above_mean) note_means(call, tile, slot);
  std::vector<float>& scores = slot.scores[call.head_index(tile.kv_head)];
  size_t first = 0;
  KeptLogits were_kept(slot, tile.n_rows());
  for_each_tier(
      call, tile, slot, [&](const TierOfHead& at, const BlockSpan& span, const Rows& rows, auto, const TierOfHead*) {
        if (!at.scored()) return;
        const size_t last = first + span.n_tokens;
        if (scores.size() < last) scores.resize(last, 0.0f);
        const KeptLogits::Part kept = were_kept.next(at.tier->n_blocks());
        const auto score = [&](const Rows& counted, const MaskTile& seen, uint32_t row, float* sums) {
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
            const Rows wide = span.wide ? row_of(*rows.wide, r, *span.wide_geometry) : Rows();
            row.wide = &wide;
            score(row, mask_of_row(mask, r, tile.group()), r, slot.sums.data());
            add_counts(slot, r / tile.group(), scores.data() + first, span.n_tokens);
          }
        } else {
          score(rows, mask, 0, scores.data() + first);
        }
        first = last;
      });
}

void forget_scores(tier::Tier& tier) {
  for (uint32_t slot = 0; slot < tier.size(); ++slot) {
    tier.set_score(slot, std::copysign(0.0f, tier.score(slot)), tier.arrival(slot));
  }
}

void finish_chunk(const Call& call, uint32_t kv_head) {
  if (!call.scoring(kv_head)) return;
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

// ---------------------------------------------------------------- items

void commit_head(const Call& call, uint32_t kv_head, ThreadSlot& slot) {
  for (tier::SegmentStore* segment : call.segments) {
    segment->heads()[kv_head].commit(segment->spec(), segment->n_live(), call.args.commit_from, slot.commit);
  }
}

// Items [first, last) of a KV head.
void run_items(const Call& call, uint32_t kv_head, uint32_t first, uint32_t last, ThreadSlot& slot) {
  const auto tile_at = [&](uint32_t first_token) {
    return RowTile{call.args, call.layer, kv_head, first_token,
                   std::min(call.tile_tokens, call.args.n_tokens - first_token)};
  };
  if (call.step()) {
    const RowTile tile = tile_at(0);
    if (first == 0) note_queries(call, tile);
    run_splits(call, tile, first, last, slot);
  } else {
    for (uint32_t i = first; i < last; ++i) {
      const RowTile tile = tile_at(i * call.tile_tokens);
      note_queries(call, tile);
      run_tile(call, tile, slot);
    }
  }
  std::atomic<uint32_t>& done = call.workspace.done[call.head_index(kv_head)].n;
  if (done.fetch_add(last - first, std::memory_order_acq_rel) + last - first != call.items_per_head()) return;
  done.store(0, std::memory_order_relaxed);
  call.step() ? finish_step(call, tile_at(0), slot) : finish_chunk(call, kv_head);
  if (call.args.commit) commit_head(call, kv_head, slot);
}

Status check(const LayerAttendArgs& args, const LayerShape& shape) {
  if (args.n_tokens == 0) return {};
  if (!args.q || !args.out) return Error{"attend: q and out must not be null"};
  if (args.q_head_stride < shape.head_dim_k || args.out_head_stride < shape.head_dim_v) {
    return Error{"attend: a head stride is smaller than the head dimension"};
  }
  if (args.mask.type != Mask::Type::none && !args.mask.data) return Error{"attend: the mask has a type but no data"};
  return {};
}

}  // namespace
}  // namespace attention

Status LayerCache::attend(const LayerAttendArgs& args, Workspace& workspace, uint32_t thread, uint32_t n_threads) {
  return attend(std::span(&args, 1), workspace, thread, n_threads);
}

Status LayerCache::attend(std::span<const LayerAttendArgs> calls, Workspace& workspace, uint32_t thread,
                          uint32_t n_threads) {
  Workspace::Impl& scratch = workspace.impl();
  if (n_threads > scratch.threads.size() || thread >= n_threads) {
    return Error{"attend: thread " + std::to_string(thread) + " of " + std::to_string(n_threads) +
                 " with a workspace for " + std::to_string(scratch.threads.size())};
  }
  if (calls.size() > scratch.max_calls) {
    return Error{"attend: " + std::to_string(calls.size()) + " calls with a workspace for " +
                 std::to_string(scratch.max_calls)};
  }
  if (scratch.max_calls * size_t{impl_->shape.n_kv_heads} > scratch.done.size()) {
    return Error{"attend: " + std::to_string(impl_->shape.n_kv_heads) + " KV heads with a workspace for " +
                 std::to_string(scratch.done.size() / scratch.max_calls)};
  }
  for (const LayerAttendArgs& args : calls) {
    if (const Status status = attention::check(args, impl_->shape); !status) return status;
  }
  try {
    const auto for_each_call = [&](auto work) {
      uint32_t first_head = 0;
      for (const LayerAttendArgs& args : calls) {
        if (args.n_tokens) work(attention::plan(args, *impl_, scratch, first_head, scratch.threads[thread].segments));
        first_head += impl_->shape.n_kv_heads;
      }
    };
    attention::Shares shares{.n_threads = n_threads};
    for_each_call([&](const attention::Call& call) {
      shares.total += call.n_heads() * call.items_per_head() * call.item_cost();
    });
    for_each_call([&](const attention::Call& call) {
      for (uint32_t head = 0; head < call.n_heads(); ++head) {
        const auto [first, last] = shares.next(thread, call.items_per_head(), call.item_cost());
        if (first < last) attention::run_items(call, head, first, last, scratch.threads[thread]);
      }
    });
  } catch (const std::bad_alloc&) {
    if (n_threads == 1) workspace.forget_failed();
    return Error::out_of_memory("out of memory in attention; use fewer or shorter sequences");
  }
  return {};
}

}  // namespace mikv
