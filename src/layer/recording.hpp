// What attention tells policies and balancers: importance scores, and statistics of queries.
//
// Scores need the finished softmax: they come from kept logits, and where these have no room, from a second QK pass.
// Those of a chunk are summed per thread and then over threads, so that the result does not depend on timing.
#pragma once

#include "layer/attend_call.hpp"

namespace mikv::attention {

/// Notes the tile's queries in the heads whose segments are not frozen yet.
void note_queries(const Call& call, const QueryTile& tile);

/// Whether queries of this tile count in the scores of its KV head.
bool scores_tile(const Call& call, const QueryTile& tile);

/// Adds a generation step's scores to the tiers, from the splits' kept logits and the state merged from them.
void add_step_scores(const Call& call, const QueryTile& tile, const RowState& state, ThreadSlot& slot);

/// Starts the thread's kept logits of a tile, to be written or to be read.
void begin_tile_logits(const QueryTile& tile, ThreadSlot& slot);
/// Adds the scores of a tile of a chunk to the thread's sums. slot.inverse_sum of rows that do not count becomes 0.
void add_tile_scores(const Call& call, const QueryTile& tile, const QueryMask& mask, const Scratch& scratch,
                     ThreadSlot& slot);
/// Adds the sums of all threads to the tiers, once all tiles of the KV head are done.
void add_chunk_scores(const Call& call, uint32_t kv_head);

}  // namespace mikv::attention
