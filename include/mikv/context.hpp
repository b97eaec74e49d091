// Context: the KV cache of one model instance, as an engine talks to it. It has the shape of llama.cpp's
// llama_memory_i.
//
//   begin_step(batch)                  plans the step, reserves its memory, and compresses prompts that have ended: that
//                                      may take long, on up to n_threads threads of its own
//     for each layer, in the model's order:
//       store(layer, cells, k, v)      keeps keys and values, uncompressed
//       attend(layer, calls)           softmax(q k) v over all tiers; compresses generated tokens, and pieces of a prompt
//                                      that is streamed
//   end_step()
//
// Between steps an engine removes, copies, keeps and shifts sequences, saves and loads them.
//
// A token's K and V live in a cell. Cells are numbered within a stream: one buffer of cells for all sequences
// (unified), or one per sequence. By default the context keeps the table of cells. An engine that keeps its own table
// (llama.cpp does) implements CellOwner.
//
// Threads: attend() and rotate_keys() are collective, fail() may come from any thread. memory_usage(), figures() and
// failure() may be read from any thread between steps. All other calls need the context for themselves. begin_step(),
// compress(), save(), copy() and load() may start up to n_threads threads, and join them; attend_all() keeps a team.
// Two contexts are independent; they may share a MemoryAccount. Errors: every call that can fail returns a Status or
// Result. After a step that failed, sequences hold what they held before it. The tokens of the step are forgotten where
// the context keeps the cells; else the engine removes them. Words: docs/glossary.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mikv/export.h"
#include "mikv/memory_account.hpp"
#include "mikv/result.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"

namespace mikv {

using SequenceId = int32_t;  ///< 0 .. n_sequences - 1
using Position = int32_t;    ///< of a token in its sequence; RoPE rotates by it

/// In remove(), shift(), save() and load(): all sequences.
inline constexpr SequenceId kAllSequences = -1;

/// The tokens of one step.
struct Batch {
  struct Token {
    SequenceId sequence = 0;
    bool output = false;       ///< its logits are wanted; a prompt ends with a token that has it
    Position position = 0;     ///< read only where the context keeps the cells
    bool punctuation = false;  ///< its text is punctuation: `fastgen` has a set of such tokens; others do not read it
  };
  struct Shared {
    uint32_t token;  ///< index in `tokens`
    SequenceId sequence;
  };
  std::vector<Token> tokens;
  std::vector<Shared> shared;  ///< further sequences that tokens belong to; unified contexts only
};

/// A cell of one of the context's streams.
struct CellPlace {
  uint32_t stream = 0;  ///< 0 in a unified context, else the sequence's number
  Cell cell = 0;
};
using CellsByLayer = std::map<int, std::vector<CellPlace>>;

/// The engine's own part of a saved state: bytes, with holes where the rows of K and V would be.
struct EngineState {
  struct Hole {
    uint64_t offset = 0, size = 0;
  };
  uint64_t size = 0;           ///< bytes, holes included
  std::vector<uint8_t> words;  ///< the bytes outside of the holes, in order
  std::vector<Hole> holes;     ///< by offset, disjoint
  CellsByLayer cells;          ///< whose rows the holes stand for, by layer, in the engine's order
};

/// An engine that keeps its own table of cells. Called on the thread of begin_step(), copy(), forget_removed(), save()
/// and load(), and from nowhere else.
class MIKV_API CellOwner {
 public:
  virtual ~CellOwner() = default;
  /// Cells that hold a token, by layer.
  virtual Result<CellsByLayer> live_cells() = 0;
  /// Saves a sequence, or kAllSequences. partial: only what cannot be recomputed from the rest (sliding windows,
  /// recurrent layers).
  virtual Result<EngineState> save(SequenceId sequence, bool partial) = 0;
  /// Whether load() would take the state, asked before anything changes: damaged_data, mismatch. By default it would.
  virtual Status check(SequenceId /*sequence*/, const EngineState& /*state*/) { return {}; }
  /// Takes a saved state. Returns the cells that it chose, by layer, in the order of the state.
  virtual Result<CellsByLayer> load(SequenceId sequence, bool partial, const EngineState& state) = 0;
  /// Empties the sequence after a load that failed half way.
  virtual void drop(SequenceId sequence) = 0;
};

/// Receives one line for people, without a line break, on the thread of the call that logs.
using Log = std::function<void(const std::string& line)>;

/// Calls work(thread, n) on n threads at once, at most n_threads, and returns when all have returned.
using RunThreads =
    std::function<void(uint32_t n_threads, const std::function<void(uint32_t thread, uint32_t n)>& work)>;

struct ContextOptions {
  Spec spec;
  uint32_t n_sequences = 1;  ///< 1 to 4096
  bool unified = false;      ///< one stream of cells for all sequences, else one per sequence
  uint32_t n_cells = 4096;   ///< cells per stream, where the context keeps the table
  /// Most tokens of a store() (the micro-batch). Not checked: more may exceed what the step reserved.
  uint32_t n_ubatch = 512;
  /// Most threads that attend() uses; further ones return at once. Compression and copies use as many.
  uint32_t n_threads = 1;
  /// Tokens of a unified step are stored in the order of the batch. If false they cannot be told apart, and all share
  /// the segments of sequence 0.
  bool tokens_in_order = true;
  CellOwner* cells = nullptr;              ///< borrowed; null: the context keeps the table
  std::shared_ptr<MemoryAccount> account;  ///< shared by contexts that have one budget, or null
  Log log;                                 ///< null: nothing is logged
  RunThreads run_threads;                  ///< the engine's threads for attend_all(); null: the context's own
  std::string model;                       ///< name for messages; part of saved states
  uint64_t fingerprint = 0;                ///< hash of weights, RoPE and shapes: a state loads only where it is equal
};

/// Counters since the context was created.
struct Figures {
  uint64_t n_steps = 0;    ///< completed
  uint64_t n_lowered = 0;  ///< times that stored text was lowered to stay within the budget
  uint64_t n_refused = 0;  ///< steps, copies and loads refused with over_budget
  /// Steps among them, by request. An engine may try a refused step again with fewer tokens, down to one: that is the
  /// same request, and what fits in the end was not refused. Counted once the next larger step shows that it is given
  /// up; until then it is undecided (0 or 1).
  uint64_t n_refused_requests = 0, n_undecided_requests = 0;
  /// Of texts whose probabilities were measured (several tokens of a prompt want logits), in the first layer: tokens,
  /// stored tokens that they could see, and how many of these were compressed.
  uint64_t n_measured = 0, n_measured_seen = 0, n_measured_compressed = 0;
};

/// The uncompressed content of a context after an exact prefill, to start several specs from. Immutable.
class Snapshot;

/// Gets up to 16 stored keys of a KV head: keys[cells.size()][head_dim_k], in the engine's coordinates. Bit i of the
/// result: store row i, it was changed.
using RotateKeys = std::function<uint32_t(uint32_t stream, std::span<const Cell> cells, std::span<float> keys)>;

class MIKV_API Context {
 public:
  /// Errors: a number out of range.
  static Result<std::unique_ptr<Context>> create(ContextOptions options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Layers
  /// Declares a layer before its first step; `layer` is the engine's number, from 0. n_cells: per stream, 0 for
  /// ContextOptions::n_cells. window: tokens that a query sees, 0 for all. A context that keeps the cells ignores
  /// n_cells, one that does not ignores window. Repeating a declaration is fine. Errors: unsupported or another shape;
  /// a negative number; an unknown MIKV_TARGET; those of the file of balancer=FILE, which is read here.
  Status add_layer(int layer, const LayerShape& shape, uint32_t n_cells = 0, uint32_t window = 0);
  /// Declares how keys rotate with their position: improves compression; shift() needs it. Errors: no such layer; more
  /// channels than a key has; an angle that is not finite.
  Status set_rope(int layer, Rope rope);
  std::vector<int> layers() const;
  const LayerShape& shape(int layer) const;  ///< the layer must exist

  // A step
  /// Plans the step and makes room. There is no step after an error: over_budget (free something or take less); a
  /// sequence out of range or incomplete; a negative position; a bad entry of `shared`; no free cells; CellOwner's.
  Status begin_step(const Batch& batch);

  /// Keeps K and V of the next tokens of the batch. Row i is at data + i * stride floats: [n_kv_heads][head_dim].
  /// cells: one per row, the engine's choice; empty where the context keeps the cells, n_tokens is the number then.
  /// K and V may come in two calls with the same cells, the other one null. Stores f16: what is too large becomes the
  /// largest finite number, NaN 0. Errors: no such layer; a small stride; a cell out of range or named twice; more
  /// tokens than the batch has; K and V of different tokens (in attend() or end_step() if one never comes); no memory.
  Status store(int layer, std::span<const CellPlace> cells, const float* k, size_t k_stride, const float* v,
               size_t v_stride, uint32_t n_tokens = 0);

  /// out = softmax(scale * q.k + mask) v over what the tokens' sequences hold. A query that sees no cell gets zeros.
  /// Unified: one call with all tokens of the layer's last store(). Otherwise one call per stream that has some.
  /// Mask::Type::none: the context's own mask where it keeps the cells (same sequence, no later position, within the
  /// layer's window), else no mask.
  /// Collective: each of n_threads threads calls it with its own number and equal arguments. Outputs are complete, and
  /// the next call on this context may start, when all have returned. Errors: no such layer; a null pointer; a small
  /// stride; a bad thread; a sequence not of the step, or twice; tokens that the last store() did not keep; no memory.
  Status attend(int layer, std::span<const AttendArgs> calls, uint32_t thread = 0, uint32_t n_threads = 1);

  /// attend() by options().n_threads threads: those of options().run_threads, or the context's own.
  Status attend_all(int layer, std::span<const AttendArgs> calls);

  /// Ends the step. done = false: the engine gave up, the step's tokens are forgotten. Errors: the step's first; its
  /// outputs are invalid then.
  Status end_step(bool done = true);

  Status failure() const;         ///< the first error of the present or last step
  void fail(const Error& error);  ///< fails the present step with an error of the engine's; the first error stays

  // Sequences
  /// Forgets tokens at positions p0 <= p < p1; negative: from the beginning, to the end. An engine that keeps the cells
  /// removes them first.
  Status remove(SequenceId sequence, Position p0 = -1, Position p1 = -1);
  /// Lets `to` hold what `from` holds at p0 <= p < p1. Unified: shares the cells, and `to` keeps what it held.
  /// Otherwise a copy replaces that. An engine that keeps the cells copies them afterwards. Errors leave `to`
  /// incomplete: over_budget.
  Status copy(SequenceId from, SequenceId to, Position p0 = -1, Position p1 = -1);
  /// Forgets all other sequences. An engine that keeps split streams decides itself which.
  Status keep(SequenceId sequence);
  /// Marks what a sequence, or kAllSequences, holds as incomplete, as copy() and shift() do where they fail half way.
  /// Steps with it are refused, with the reason, until it is removed, loaded or replaced by a copy.
  void invalidate(SequenceId sequence, const Error& why);
  /// Moves positions p0 <= p < p1 by delta and rotates their keys (a context shift). Forgets tokens whose position gets
  /// negative. Errors: unsupported if a layer's RoPE is not known. An engine that keeps the cells moves them first and
  /// rotates keys by rotate_keys().
  Status shift(SequenceId sequence, Position p0, Position p1, Position delta);
  Status forget_removed();  ///< frees what was removed now, not at the next step; errors: those of CellOwner
  void clear();             ///< forgets everything
  Position last_position(SequenceId sequence) const;  ///< the largest; -1 if none or if the engine keeps the cells

  /// Visits every stored key of the layer; keys stay in their tier. Collective, as attend(). Errors: no such layer.
  Status rotate_keys(int layer, const RotateKeys& rotate, uint32_t thread = 0, uint32_t n_threads = 1);

  /// Compresses staged tokens of every segment that has 256 of them, or compressed ones already: the end of a prompt. A
  /// sequence's first step of a single token does the same. Errors: out of memory.
  Status compress();

  // States
  /// A sequence, or all, as bytes: tiers as they are stored (docs/file-format.md), and `tokens` beside them.
  /// partial: see CellOwner::save. Errors: out of memory; those of CellOwner.
  Result<std::vector<uint8_t>> save(SequenceId sequence, std::span<const int32_t> tokens = {}, bool partial = false);
  /// Replaces what the sequence held. Bytes may be hostile: all are verified before anything changes. Errors:
  /// damaged_data; mismatch (another model or options, a smaller context, or a spec that is not alike in: evicting,
  /// compressing, lo=mixed, outlier=f16, keys, rotation, groups); over_budget and out_of_memory: the sequence is empty
  /// then. What was saved in other bits or shares is held so, and lowered where the budget needs it.
  Status load(SequenceId sequence, std::span<const uint8_t> bytes, bool partial = false);
  /// The tokens that were saved with a state. Errors: damaged_data.
  static Result<std::vector<int32_t>> saved_tokens(std::span<const uint8_t> bytes);

  /// Errors: something is compressed already; out of memory.
  Result<std::shared_ptr<const Snapshot>> snapshot() const;
  /// Replaces the content by the snapshot's, under `spec`. An engine's own table of cells is for the engine to restore.
  /// Errors: another model's snapshot; a spec that needs more statistics than the snapshot has.
  Status restore(const std::shared_ptr<const Snapshot>& snapshot, const Spec& spec);

  /// Copies what waits in f16 in a stream; returns the number of tokens. KV head h of cell c goes to k + c * k_stride +
  /// h * head_dim_k, its value to v alike; strides in f16 elements, a row for each cell of the stream.
  uint64_t read_f16(int layer, uint32_t stream, uint16_t* k, size_t k_stride, uint16_t* v, size_t v_stride) const;

  // Sizes
  /// Of this context, or of all with its account; 0: none. The next call that needs room lowers stored tokens.
  void set_budget(uint64_t bytes);
  MemoryAccount& account() const;  ///< this context's part of a shared one
  MemoryUsage memory_usage() const;
  Figures figures() const;
  const Spec& spec() const;  ///< that create() or restore() got; new tokens use it where the budget allows
  /// Sequences of which a budget has lowered a part below spec(). It stays so until they are removed.
  std::vector<SequenceId> lowered_sequences() const;
  const ContextOptions& options() const;

  struct Impl;  ///< inside of the library (src/context/context_impl.hpp)

 private:
  friend Impl& impl_of(const Context& context);
  explicit Context(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mikv
