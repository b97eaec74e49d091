// LayerCache::attend: cuts the work of a call into items for the threads, and runs the kernels over staged, hi and lo.
//
// A generation step (one query token) has an item for each KV head, and in long contexts several that split the blocks;
// the thread that finishes a head last merges, writes the output, adds the importance scores and commits the head. A
// chunk (more tokens) has an item for each KV head and tile of tokens, each with its own output. Neither needs a
// barrier.
#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "layer/attend_call.hpp"
#include "layer/recording.hpp"

namespace mikv {
namespace attention {
namespace {

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

// A step of blocks [begin, end).
std::span<const uint8_t> first_step(const tier::Tier& tier, uint32_t begin, uint32_t end) {
  const size_t stride = tier.layout().bytes;
  return {tier.blocks() + begin * stride, std::min(end - begin, kStripBlocks) * stride};
}

// ---------------------------------------------------------------- a generation step

// Splits [first, last) one after the other in each span: the queries are prepared once. A split that has nothing of a
// tier takes its view of the state all the same: states that are merged have the same coordinates.
void run_splits(const Call& call, const QueryTile& tile, uint32_t first, uint32_t last, ThreadSlot& slot) {
  const auto partial = [&](uint32_t split) -> Partial& {
    return call.workspace.partial(call.head_index(tile.kv_head), split);
  };
  for (uint32_t split = first; split < last; ++split) reset(partial(split).state, call.layer, tile.n_rows());
  const QueryMask mask = mask_for(call, tile, slot);
  const Scratch scratch = scratch_for(slot, call.layer, tile.n_rows());
  const bool scoring = call.scoring(tile.kv_head);
  for (uint32_t split = first; split < last; ++split) partial(split).kept.begin(tile.n_rows());
  for_each_tier(
      call, tile, slot, [&](const TierOfHead& at, BlockSpan span, const Rows& rows, auto view, const TierOfHead* next) {
        for (uint32_t split = first; split < last; ++split) {
          const uint32_t n = call.n_splits, begin = cut(at, split, n), end = cut(at, split + 1, n);
          KeptLogits::Part kept;
          if (at.scored() && scoring) kept = partial(split).kept.next(end - begin);
          const State state = view(partial(split).state);
          if (begin == end) continue;
          span.next = {};
          if (end < cut(at, last, n))
            span.next = first_step(*at.tier, end, cut(at, last, n));
          else if (next)
            span.next = first_step(*next->tier, cut(*next, first, n), cut(*next, last, n));
          kernels().attend(span, begin, end, rows, mask, call.args.softcap, state, kept.logits, kept.stride(), scratch);
        }
      });
}

void finish_step(const Call& call, const QueryTile& tile, ThreadSlot& slot) {
  const size_t head_index = call.head_index(tile.kv_head);
  RowState& state = call.workspace.partial(head_index, 0).state;
  for (uint32_t split = 1; split < call.n_splits; ++split) {
    merge(state, call.workspace.partial(head_index, split).state, tile.n_rows());
  }
  finish(tile, state, slot.inverse_sum);
  if (call.scoring(tile.kv_head)) add_step_scores(call, tile, state, slot);
}

// ---------------------------------------------------------------- a chunk of tokens

void run_tile(const Call& call, const QueryTile& tile, ThreadSlot& slot) {
  reset(slot.state, call.layer, tile.n_rows());
  const QueryMask mask = mask_for(call, tile, slot);
  const Scratch scratch = scratch_for(slot, call.layer, tile.n_rows());
  const float softcap = call.args.softcap;
  const bool scores = scores_tile(call, tile);
  begin_tile_logits(tile, slot);
  for_each_tier(
      call, tile, slot,
      [&](const TierOfHead& at, const BlockSpan& span, const Rows& rows, auto view, const TierOfHead*) {
        const State state = view(slot.state);
        KeptLogits::Part kept;
        if (scores && at.scored()) kept = slot.kept.next(at.tier->n_blocks());
        kernels().attend(span, 0, kept.n_blocks, rows, mask, softcap, state, kept.logits, kept.stride(), scratch);
        kernels().attend(span, kept.n_blocks, at.tier->n_blocks(), rows, mask, softcap, state, nullptr, 0, scratch);
      });
  finish(tile, slot.state, slot.inverse_sum);
  if (scores) add_tile_scores(call, tile, mask, scratch, slot);
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
    return QueryTile{call.args, call.layer, kv_head, first_token,
                     std::min(call.tile_tokens, call.args.n_tokens - first_token)};
  };
  if (call.one_token()) {
    const QueryTile tile = tile_at(0);
    if (first == 0) note_queries(call, tile);
    run_splits(call, tile, first, last, slot);
  } else {
    for (uint32_t i = first; i < last; ++i) {
      const QueryTile tile = tile_at(i * call.tile_tokens);
      note_queries(call, tile);
      run_tile(call, tile, slot);
    }
  }
  std::atomic<uint32_t>& done = call.workspace.done[call.head_index(kv_head)].n;
  if (done.fetch_add(last - first, std::memory_order_acq_rel) + last - first != call.items_per_head()) return;
  done.store(0, std::memory_order_relaxed);
  if (call.one_token()) {
    finish_step(call, tile_at(0), slot);
  } else if (call.scoring(kv_head)) {
    add_chunk_scores(call, kv_head);
  }
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
