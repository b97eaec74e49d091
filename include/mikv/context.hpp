// Context: the KV cache of one model instance, as an engine talks to it. It has the shape of llama.cpp's
// llama_memory_i.
//
//   begin_step(batch)                  plans where tokens go, makes room for them within the budget
//     for each layer, in the model's order:
//       store(layer, cells, k, v)      keeps keys and values, in f16 at first
//       attend(layer, calls)           softmax(q k) v over all tiers; compresses what the step completes
//   end_step()
//
// Between steps an engine removes, copies, keeps and shifts sequences, saves and loads them.
//
// A token's K and V live in a cell. Cells are numbered within a stream: one buffer of cells for all sequences
// (unified), or one per sequence. By default the context keeps the table of cells itself. An engine that keeps its own
// table (llama.cpp does) implements CellOwner.
//
// Threads: attend() and rotate_keys() are collective, see there. The figures (memory_usage, figures, failure) may be
// read from any thread between steps. All other calls need the context for themselves. Two contexts are independent,
// unless they share a MemoryAccount, which is safe.
// Errors: every call returns a Status or Result. A step that fails leaves the sequences as they were before it, except
// for its own tokens, which the engine removes.
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
using Position = int32_t;    ///< of a token in its sequence; what RoPE turns by

/// In remove(), shift(), save() and load(): every sequence at once.
inline constexpr SequenceId kAllSequences = -1;

/// The tokens of one step.
struct Batch {
  struct Token {
    SequenceId sequence = 0;
    bool output = false;    ///< its logits are wanted; a prompt ends with a token that has it
    Position position = 0;  ///< read only where the context keeps the cells
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
  uint32_t stream = 0;
  Cell cell = 0;
};
using CellsByLayer = std::map<int, std::vector<CellPlace>>;

/// What an engine itself keeps of a state: bytes, with holes where the rows of K and V would be.
struct EngineState {
  struct Hole {
    uint64_t offset = 0, size = 0;
  };
  uint64_t size = 0;           ///< holes included
  std::vector<uint8_t> words;  ///< what stands outside of the holes, one part after the other
  std::vector<Hole> holes;     ///< rising, disjoint
  CellsByLayer cells;          ///< whose rows are missing, by layer, in the engine's order
};

/// An engine that keeps its own table of cells. The context calls it from within the calls that say so.
class MIKV_API CellOwner {
 public:
  virtual ~CellOwner() = default;
  /// Cells that hold a token, by layer.
  virtual Result<CellsByLayer> live_cells() = 0;
  /// `sequence` may be kAllSequences. `partial`: only what cannot be recomputed from the rest (sliding windows,
  /// recurrent layers).
  virtual Result<EngineState> save(SequenceId sequence, bool partial) = 0;
  /// Takes a saved state and gives the cells that it chose, by layer, in the order of the state.
  virtual Result<CellsByLayer> load(SequenceId sequence, bool partial, const EngineState& state) = 0;
  /// After a load that failed half way: the sequence holds nothing.
  virtual void drop(SequenceId sequence) = 0;
};

/// One line for people, without a line break. Called on the thread that runs the call.
using Log = std::function<void(const std::string& line)>;

struct ContextOptions {
  Spec spec;
  uint32_t n_sequences = 1;  ///< 1 to 4096
  bool unified = false;      ///< one stream of cells for all sequences, else one per sequence
  uint32_t n_cells = 4096;   ///< cells per stream, where the context keeps the table
  uint32_t n_ubatch = 512;   ///< tokens that pass through a layer at once (the micro-batch)
  uint32_t n_threads = 1;    ///< the most threads that attend() is called by; also used by compression
  /// The engine stores the tokens of a unified step in the order of the batch. Else they cannot be told apart and
  /// share the segments of sequence 0.
  bool tokens_in_order = true;
  CellOwner* cells = nullptr;              ///< borrowed; null: the context keeps the table
  std::shared_ptr<MemoryAccount> account;  ///< what the context's own account is a part of, to share a budget; or null
  Log log;                                 ///< null: nothing is logged
  std::string model;                       ///< in words; part of saved states
  uint64_t fingerprint = 0;                ///< of everything that must be equal for a saved state to mean the same
};

/// Counters since the context was created.
struct Figures {
  uint64_t n_steps = 0;        ///< that were completed
  uint64_t n_concessions = 0;  ///< times that the cache was made smaller to stay within the budget
  uint64_t n_refused = 0;      ///< steps that did not fit the budget
};

/// The uncompressed content of a context after an exact prefill, to start several specs from. Immutable.
class Snapshot;

/// Up to 16 stored keys of one KV head at a time: keys[cells.size()][head_dim_k], in the engine's coordinates. Bit i
/// of the result: what was left in row i is stored instead of what was there.
using RotateKeys = std::function<uint32_t(uint32_t stream, std::span<const Cell> cells, std::span<float> keys)>;

class MIKV_API Context {
 public:
  /// Errors: a number out of range.
  static Result<std::unique_ptr<Context>> create(ContextOptions options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Layers
  /// Declares a layer before its first step; `layer` is the engine's number for it. n_cells: per stream, 0 for
  /// ContextOptions::n_cells. window: tokens that a query sees, 0 for all; read where the context keeps the cells.
  /// Declaring the same layer again is no error. Errors: unsupported shape; another shape than before.
  Status add_layer(int layer, const LayerShape& shape, uint32_t n_cells = 0, uint32_t window = 0);
  /// Tells how the layer's keys turn with their position: compression uses it, and shift() needs it.
  /// Errors: no such layer; more channels than a key has; an angle that is not finite.
  Status set_rope(int layer, Rope rope);
  std::vector<int> layers() const;
  /// Of a layer that there is.
  const LayerShape& shape(int layer) const;

  // A step
  /// Plans the step and makes room for it. Errors: over_budget (nothing changed but concessions, free something or
  /// take a smaller batch); invalid_argument: a sequence out of range; no free cells; what CellOwner returned.
  Status begin_step(const Batch& batch);

  /// Keeps K and V of the next cells.size() tokens of the batch. Row i is at data + i * stride floats and has
  /// [n_kv_heads][head_dim] of them. K and V may come in two calls for the same cells, each with the other one null.
  /// cells: where the tokens go, in the engine's table; empty where the context keeps the cells: then n_tokens counts.
  /// A non-finite element is stored as the nearest finite f16, NaN as 0.
  /// Errors: no such layer; a cell out of range or named twice; more tokens than the batch has; out of memory.
  Status store(int layer, std::span<const CellPlace> cells, const float* k, size_t k_stride, const float* v,
               size_t v_stride, uint32_t n_tokens = 0);

  /// out = softmax(scale * q.k + mask) v over what the tokens' sequences hold. A query that sees no cell gets zeros.
  /// Unified: one call with all tokens that the layer's last store() kept. Else one per stream that has some.
  /// Mask::Type::none stands for the context's own mask where it keeps the cells (same sequence, no later position,
  /// within the layer's window), else for no mask.
  /// Collective: each of n_threads threads calls it with its own number and the same arguments. Outputs are complete
  /// when all have returned; only then may the next call on this context start.
  /// Errors: no such layer; a null pointer or a small stride; out of memory.
  Status attend(int layer, std::span<const AttendArgs> calls, uint32_t thread = 0, uint32_t n_threads = 1);

  /// Ends the step. done: the engine computed all of it; else the step's tokens are forgotten. Errors: the first that
  /// store() or attend() met; the step's outputs mean nothing then.
  Status end_step(bool done = true);

  /// The first error of the present or last step.
  Status failure() const;
  /// An engine's own error of the present step: the step fails with it. Safe from several threads. The first one stays.
  void fail(const Error& error);

  // Sequences
  /// Forgets the tokens of a sequence at positions p0 <= p < p1; negative: from the beginning, to the end.
  /// An engine that keeps the cells calls it after it has removed them.
  Status remove(SequenceId sequence, Position p0 = -1, Position p1 = -1);
  /// `to` holds what `from` does as well, at positions p0 <= p < p1. Unified: nothing is copied. Else all of `from`
  /// replaces what `to` held. An engine that keeps the cells calls it before it copies them.
  Status copy(SequenceId from, SequenceId to, Position p0 = -1, Position p1 = -1);
  /// Forgets all other sequences; where there is a stream per sequence and an engine keeps the cells, those of the
  /// sequence's own stream only.
  Status keep(SequenceId sequence);
  /// Moves positions p0 <= p < p1 by delta and rotates their keys (a context shift). Tokens that would get a negative
  /// position are forgotten. Errors: unsupported if a layer's RoPE is not known. An engine that keeps the cells calls
  /// it after it has moved them, and rotates keys by rotate_keys().
  Status shift(SequenceId sequence, Position p0, Position p1, Position delta);
  /// Forgets what earlier calls removed, now instead of at the next step. Errors: what CellOwner returned.
  Status forget_removed();
  /// Forgets everything.
  void clear();
  /// The largest position that the sequence holds, -1 if none. Where the context keeps the cells.
  Position last_position(SequenceId sequence) const;

  /// Visits every stored key of the layer. Changed keys stay in their tier; values stay as they are. Threads of one
  /// call share the work. Errors: no such layer; what CellOwner::live_cells() returned.
  Status rotate_keys(int layer, const RotateKeys& rotate, uint32_t thread = 0, uint32_t n_threads = 1);

  /// Compresses what waits in f16, of all sequences that have enough tokens: the end of a prompt. The first
  /// single-token step of a sequence does it by itself.
  Status compress();

  // States
  /// A sequence, or all, as bytes: tiers as they are stored, nothing decoded (docs/file-format.md). tokens: kept with
  /// it. partial: see CellOwner::save. Errors: out of memory; what CellOwner returned.
  Result<std::vector<uint8_t>> save(SequenceId sequence, std::span<const int32_t> tokens = {}, bool partial = false);
  /// Replaces what the sequence held. Bytes may be hostile: all are verified before anything changes. Errors:
  /// damaged_data; mismatch (another model, options or spec); no room: the sequence is empty then.
  Status load(SequenceId sequence, std::span<const uint8_t> bytes, bool partial = false);
  /// The tokens that were saved with a state. Errors: damaged_data.
  static Result<std::vector<int32_t>> saved_tokens(std::span<const uint8_t> bytes);

  /// Errors: something is compressed already; out of memory.
  Result<std::shared_ptr<const Snapshot>> snapshot() const;
  /// Replaces the content by the snapshot's, under another spec. Cells of an engine's own table are the engine's to
  /// bring back. Errors: another model's snapshot; a spec that needs more statistics than the snapshot has.
  Status restore(const std::shared_ptr<const Snapshot>& snapshot, const Spec& spec);

  /// Of an uncompressed context, or of what waits in f16: copies rows of a stream as halves. KV head h of cell c goes
  /// to k + c * k_stride + h * head_dim_k, and to v alike; strides in halves. Returns the number of tokens copied.
  uint64_t read_f16(int layer, uint32_t stream, uint16_t* k, size_t k_stride, uint16_t* v, size_t v_stride) const;

  // Sizes
  /// The most bytes that this context may hold, or all that share ContextOptions::account, from the next step on; 0: no
  /// limit.
  void set_budget(uint64_t bytes);
  MemoryAccount& account() const;
  MemoryUsage memory_usage() const;
  Figures figures() const;
  /// What new text is held under now. Differs from ContextOptions::spec where the budget made it smaller.
  const Spec& spec() const;
  const ContextOptions& options() const;

  struct Impl;
  /// For tests and tools inside of the library.
  Impl& impl() const { return *impl_; }

 private:
  explicit Context(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mikv
