// LayerCache: the tiered KV cache of one attention layer, and attention over it.
//
// The context (src/context/) decides which tokens go to which segment and when they are compressed; this class decides
// how a token's payload is stored and how attention reads it. Internal: engines use include/mikv/context.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "codec/transform.hpp"
#include "mikv/memory_account.hpp"
#include "mikv/result.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"
#include "policy/ladder.hpp"

namespace mikv {

/// A run of tokens of one sequence with one calibration (centres, balancers, bits): docs/glossary.md.
using SegmentId = uint32_t;
inline constexpr uint32_t kMaxSegments = 1u << 12;

/// A call of attention over some segments of a layer.
struct LayerAttendArgs : AttendArgs {
  LayerAttendArgs() = default;
  LayerAttendArgs(const AttendArgs& args) : AttendArgs(args) {}

  std::span<const SegmentId> segments;  ///< to attend; empty: all
  bool record = true;                   ///< add this attention to importance scores and query statistics
  bool commit = false;                  ///< commit each KV head when its attention is done (a generation step)
  uint32_t commit_from = 0;             ///< staged tokens that commit() waits for
};

/// One stored token of one KV head, decoded to the engine's own coordinates. For tests and the reference.
struct StoredToken {
  Cell cell = 0;
  TokenTier tier = TokenTier::staged;
  float score = 0.0f;
  std::vector<float> k;        ///< [head_dim_k]; empty if evicted
  std::vector<float> v;        ///< [head_dim_v]; empty if evicted
  std::vector<float> k_error;  ///< [head_dim_k] expected squared error that attention corrects for; empty: none
};

/// Scratch memory of attention, shared by all layers of the same threads. Not cache content.
class Workspace {
 public:
  /// max_threads: of a call of attend(). max_calls: elements of its `calls`. n_kv_heads: of the layers, at most.
  explicit Workspace(uint32_t max_threads, uint32_t max_calls = 1, uint32_t n_kv_heads = 256);
  /// Makes room for layers of so many KV heads. Not while attend() runs. May throw std::bad_alloc.
  void reserve_heads(uint32_t n_kv_heads);
  /// After a call of attend() that failed in any thread, and before the next one: threads may have left their parts of
  /// shared heads in it.
  void forget_failed();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint32_t max_threads() const;
  uint64_t bytes() const;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

/// A saved segment, verified and decoded, that no cache has adopted yet. Belongs to the cache that loaded it.
class LoadedSegment {
 public:
  LoadedSegment(LoadedSegment&&) noexcept;
  LoadedSegment& operator=(LoadedSegment&&) noexcept;
  ~LoadedSegment();

  uint64_t bytes() const;  ///< that adopting it takes
  /// LayerCache::lower() and LayerCache::freed_by() of it.
  Status lower(const policy::Rung& rung);
  int64_t freed_by(const policy::Rung& rung) const;

  struct Impl;

 private:
  friend class LayerCache;
  explicit LoadedSegment(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Bytes that a step needs, see LayerCache::growth().
struct LayerGrowth {
  int64_t lasting = 0;      ///< afterwards
  uint64_t transient = 0;   ///< beyond `lasting`, while tokens are put and tiers grow
  uint64_t compressed = 0;  ///< bytes of hi and lo while their staged source still exists
};

/// Visits up to 16 keys of one KV head: keys[cells.size()][head_dim_k], in the engine's coordinates. Bit i of the
/// result: what was left in row i is stored instead of what was there.
using VisitKeys = std::function<uint32_t(std::span<const Cell> cells, uint32_t kv_head, std::span<float> keys)>;

/// The cache of one layer. Calls that change it need exclusive access, except that write_k, write_v, attend and
/// visit_keys are made to be called by all threads of a step together: thread t of n_threads does its share.
/// Each call documents what the cache holds after an error.
class LayerCache {
 public:
  /// Cells are below max_cells; up to 65,536 their numbers take two bytes, not four. account: what memory is charged
  /// to; null: one of its own. balancers: what the spec's balancer_file has for this layer. Errors: unsupported shape;
  /// a spec whose group does not divide the head dimension; balancers of another shape.
  static Result<std::unique_ptr<LayerCache>> create(const LayerShape& shape, const Spec& spec,
                                                    uint32_t max_cells = kMaxCells,
                                                    std::shared_ptr<MemoryAccount> account = nullptr,
                                                    codec::KeyBalancers balancers = {});
  ~LayerCache();
  LayerCache(const LayerCache&) = delete;
  LayerCache& operator=(const LayerCache&) = delete;

  const LayerShape& shape() const;
  const Spec& spec() const;  ///< of new segments
  uint32_t max_cells() const;
  const std::shared_ptr<MemoryAccount>& account() const;

  /// Declares how keys rotate with their position: coordinates that are frozen on a prompt then hold for what follows
  /// it too (policy/rope_forecast.hpp). Errors: more channels than a key has, an angle that is not finite.
  Status set_rope(Rope rope);
  /// Records queries from a segment's n_tokens on: statistics of short texts would be larger than the texts.
  void record_from(uint32_t n_tokens);

  /// Stores K and V of n tokens, replacing what their cells held. Row t of k is at k + t * k_stride floats,
  /// [n_kv_heads][head_dim_k]; v alike. A non-finite element becomes the nearest finite f16, NaN 0. Errors: a cell >=
  /// max_cells or named twice, a segment >= kMaxSegments: nothing is stored; out of memory: the cells hold nothing.
  Status put(SegmentId segment, std::span<const Cell> cells, const float* k, size_t k_stride, const float* v,
             size_t v_stride);
  /// put() in two steps: stage() takes the cells, write_k() and write_v() fill the tokens of the last stage().
  /// punctuation: of each cell, not 0 if its token is punctuation; empty: none is.
  Status stage(SegmentId segment, std::span<const Cell> cells, std::span<const uint8_t> punctuation = {});
  void write_k(SegmentId segment, const float* k, size_t k_stride, uint32_t thread = 0, uint32_t n_threads = 1);
  void write_v(SegmentId segment, const float* v, size_t v_stride, uint32_t thread = 0, uint32_t n_threads = 1);

  /// out = softmax(scale * q.k + mask) v over the cells of the segments that the mask admits (MiKV, arXiv 2402.18096,
  /// section 3). A query that sees no cell gets zeros. Collective, with the same arguments in all threads: out is
  /// complete when all have returned, and only then may the next call on this layer start.
  Status attend(const LayerAttendArgs& args, Workspace& workspace, uint32_t thread = 0, uint32_t n_threads = 1);
  /// Several calls at once, one per stream of a batch. Their segments must be disjoint.
  Status attend(std::span<const LayerAttendArgs> calls, Workspace& workspace, uint32_t thread = 0,
                uint32_t n_threads = 1);

  /// Compresses what is staged: freezes the segment if it is not, moves tokens to hi, demotes down to hi's share. A KV
  /// head that has nothing compressed waits until `from` tokens are staged; to be frozen it needs 16.
  Status commit(SegmentId segment, uint32_t from = 0);
  /// The same in several layers, one after the other under a limit (growth()). n_most: as of HeadStore::commit().
  static Status commit(std::span<LayerCache* const> layers, SegmentId segment, uint32_t from, uint32_t n_threads,
                       uint32_t n_most = UINT32_MAX);

  /// `next`, which is empty, holds what follows `segment`: it takes over the places in hi for recent tokens, and the
  /// heads' bits (docs/adr/0014-segments-of-a-long-prompt.md). Errors: `next` holds tokens; out of memory.
  Status continue_segment(SegmentId segment, SegmentId next);

  /// The most that n_tokens more in `segment` take. compressed: they and what is staged are committed, n_at_once tokens
  /// after their put; else they stay staged. rung: as if lower(segment, *rung) had been called. n_beside: tokens that
  /// other segments get in the same step, whose cells may come first.
  LayerGrowth growth(SegmentId segment, uint32_t n_tokens, uint32_t n_at_once, bool compressed,
                     const policy::Rung* rung = nullptr, uint32_t n_beside = 0) const;
  /// Bytes that lower(segment, rung) gives back; less than none if it takes some. commits: after a commit(segment) of
  /// what is staged, which is not counted otherwise.
  int64_t freed_by(SegmentId segment, const policy::Rung& rung, bool commits) const;

  /// Lowers a segment, and the tokens that it gets later, to the rung: hi has floor(rung.keep * S) of S tokens, lo
  /// rung.bits; a segment below it stays as it is. Tokens are encoded anew in place. Errors: out of memory; calling
  /// again resumes.
  Status lower(SegmentId segment, const policy::Rung& rung);
  const Spec& spec_of(SegmentId segment) const;  ///< how it holds its tokens: spec(), unless lowered or loaded
  /// Gives back memory that is reserved for tokens to come, 1 to 3 %: for sequences that rest.
  void trim(SegmentId segment);
  /// on: from 16 staged tokens on, a segment with nothing compressed holds them in 8 bits per element instead of 16,
  /// until the next commit; where memory for that runs out, they stay (docs/adr/0017-prompts-wait-in-bytes.md). off:
  /// what has 8 bits keeps them, and under prefill=streaming tokens get them from 256 on.
  void stage_in_bytes(bool on);
  void encode_staged();  ///< to 8 bits, what is newly staged and asks for it; after the layer's attention

  /// Forgets cells. Unknown cells are no error.
  void erase(SegmentId segment, std::span<const Cell> cells);
  void erase_if(SegmentId segment, Cell first, Cell last);  ///< cells first..last-1
  void clear();                                             ///< all segments
  /// Forgets every cell of the segment that is not in `live`: bit c % 64 of word c / 64 is cell c.
  void retain(SegmentId segment, std::span<const uint64_t> live);

  /// Visits every stored key of the segment. Changed keys stay in their tier; values stay. Slow; allocates nothing.
  void visit_keys(SegmentId segment, const VisitKeys& visit, uint32_t thread = 0, uint32_t n_threads = 1);
  /// Copies staged tokens, which are all under an uncompressed spec, as halves in the engine's coordinates: KV head h
  /// of cell c goes to k + c * k_stride + h * head_dim_k, and to v alike; strides in halves.
  void read_f16(SegmentId segment, uint16_t* k, size_t k_stride, uint16_t* v, size_t v_stride) const;

  uint64_t n_cells(SegmentId segment) const;   ///< live cells, evicted ones included
  uint64_t n_staged(SegmentId segment) const;  ///< tokens that commit() would compress
  uint64_t bytes_of(SegmentId segment) const;  ///< that the segment has charged
  MemoryUsage memory_usage() const;
  uint64_t bytes_used() const { return memory_usage().total(); }

  /// Appends what the segment holds of cells[0], cells[1], ...: tiers as they are stored (layer/segment_format.hpp).
  Status save_segment(SegmentId segment, std::span<const Cell> cells, std::vector<uint8_t>& to) const;
  /// Reads what save_segment() of a cache of the same shape wrote for n_cells cells of a segment held as `saved`, which
  /// may have another share, other bits and formats than this cache's spec. Bytes may be hostile; the cache does not
  /// change. Errors: damaged_data; mismatch: more cells than this cache has, or a spec whose tiers are of another kind.
  Result<LoadedSegment> load_segment(std::span<const uint8_t> bytes, uint32_t n_cells, const Spec& saved) const;
  Result<LoadedSegment> load_segment(std::span<const uint8_t> bytes, uint32_t n_cells) const;  ///< saved as spec()
  /// Makes what this cache has loaded the content of `segment`; cells[i] is the new number of the i-th saved cell.
  Status adopt_segment(SegmentId segment, LoadedSegment loaded, std::span<const Cell> cells);
  Status copy_segment(SegmentId from, SegmentId to);  ///< `to` gets the content of `from`, under the same cell numbers
  /// A copy under another spec, while nothing is compressed. Errors: something is; the spec needs scores or query
  /// statistics that this one did not record.
  Result<std::unique_ptr<LayerCache>> clone(const Spec& spec, std::shared_ptr<MemoryAccount> account = nullptr,
                                            codec::KeyBalancers balancers = {}) const;

  /// What KV head `kv_head` holds of `segment`, decoded; slow. For tests and the reference.
  std::vector<StoredToken> dump(SegmentId segment, uint32_t kv_head) const;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  explicit LayerCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Attention by the formula, in double precision over dump(): the oracle of every kernel. Takes the arguments of
/// LayerCache::attend; records and commits nothing.
Status reference_attend(const LayerCache& cache, const LayerAttendArgs& args);

}  // namespace mikv
