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

#include "mikv/memory_account.hpp"
#include "mikv/result.hpp"
#include "mikv/spec.hpp"
#include "mikv/types.hpp"

namespace mikv {

/// A run of tokens of one sequence with one calibration (centres, balancers, bits): docs/glossary.md.
using SegmentId = uint32_t;
inline constexpr uint32_t kMaxSegments = 1u << 12;

/// A call of attention over some segments of a layer.
struct LayerAttendArgs : AttendArgs {
  LayerAttendArgs() = default;
  LayerAttendArgs(const AttendArgs& args) : AttendArgs(args) {}

  std::span<const SegmentId> segments;  ///< to attend; empty: all
  bool record = true;                   ///< count this attention in importance scores and query statistics
  bool commit = false;                  ///< commit each KV head as soon as its attention is done (a generation step)
  uint32_t commit_from = 0;             ///< staged tokens that LayerCache::commit() waits for
};

enum class TierName : uint8_t { staged, hi, lo, evicted };

/// One stored token of one KV head, decoded to the engine's own coordinates. For tests and the reference.
struct StoredToken {
  Cell cell = 0;
  TierName tier = TierName::staged;
  float score = 0.0f;
  std::vector<float> k;        ///< [head_dim_k]; empty if evicted
  std::vector<float> v;        ///< [head_dim_v]; empty if evicted
  std::vector<float> k_error;  ///< [head_dim_k] expected squared error that attention makes up for; empty: none
};

/// Scratch memory of attention, shared by all layers that the same threads work on. Not cache content.
class Workspace {
 public:
  /// For calls by up to max_threads threads, with up to max_calls calls at once.
  explicit Workspace(uint32_t max_threads, uint32_t max_calls = 1);
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

/// A saved segment, verified and decoded, that no cache has taken yet.
class LoadedSegment {
 public:
  LoadedSegment(LoadedSegment&&) noexcept;
  LoadedSegment& operator=(LoadedSegment&&) noexcept;
  ~LoadedSegment();

  struct Impl;

 private:
  friend class LayerCache;
  explicit LoadedSegment(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The cache of one layer. Calls that change it (put, commit, erase, clear) need exclusive access, except that write_k,
/// write_v, attend and visit_keys are made to be called by all threads of a step together.
class LayerCache {
 public:
  /// Errors: a shape out of range; a spec whose group does not divide the head dimension.
  /// max_cells: cells are below it, kMaxCells at most. Up to 65,536 their numbers are stored in two bytes instead of
  /// four. account: what all memory is charged to; null: one of its own.
  static Result<std::unique_ptr<LayerCache>> create(const LayerShape& shape, const Spec& spec,
                                                    uint32_t max_cells = kMaxCells,
                                                    std::shared_ptr<MemoryAccount> account = nullptr);
  ~LayerCache();
  LayerCache(const LayerCache&) = delete;
  LayerCache& operator=(const LayerCache&) = delete;

  const LayerShape& shape() const;
  const Spec& spec() const;
  uint32_t max_cells() const;
  const std::shared_ptr<MemoryAccount>& account() const;

  /// Tells how keys turn with their position, so that coordinates of lo=mixed that are frozen on a prompt hold for what
  /// follows it too (src/policy/rope_forecast.hpp). For segments that are not frozen yet. Errors: more channels than a
  /// key has, an angle that is not finite.
  Status set_rope(Rope rope);

  /// Stores K and V of n tokens in `segment`, replacing what those cells held before.
  /// k: row t at k + t*k_stride floats, [n_kv_heads][head_dim_k] contiguous; v the same with head_dim_v.
  /// Errors: a cell >= max_cells or named twice, a segment >= kMaxSegments, out of memory. Nothing is stored then; out
  /// of memory, the cells hold nothing. A non-finite element is stored as the nearest finite f16 (NaN as 0), so that
  /// one bad token cannot poison a group.
  Status put(SegmentId segment, std::span<const Cell> cells, const float* k, size_t k_stride, const float* v,
             size_t v_stride);

  /// put() in two steps, for engines that hand over K and V apart and from several threads: stage() reserves the cells
  /// once, then write_k / write_v fill the tokens of the last stage() of the segment, each thread its share.
  Status stage(SegmentId segment, std::span<const Cell> cells);
  void write_k(SegmentId segment, const float* k, size_t k_stride, uint32_t thread = 0, uint32_t n_threads = 1);
  void write_v(SegmentId segment, const float* v, size_t v_stride, uint32_t thread = 0, uint32_t n_threads = 1);

  /// out = softmax(scale * q.k + mask) v over the cells of the segments that the mask admits (MiKV, arXiv 2402.18096,
  /// section 3). A query that sees no cell gets zeros. Collective: each of n_threads threads calls it with its own
  /// number and the same args and workspace; out is complete when all have returned, and the next call on this layer
  /// may start only then.
  Status attend(const LayerAttendArgs& args, Workspace& workspace, uint32_t thread = 0, uint32_t n_threads = 1);

  /// Several calls at once, one for each stream of a batch. Their segments must be disjoint.
  Status attend(std::span<const LayerAttendArgs> calls, Workspace& workspace, uint32_t thread = 0,
                uint32_t n_threads = 1);

  /// Compresses what is staged: freezes the segment if it has none, moves tokens to hi, demotes to lo down to the
  /// budget. A KV head that has nothing compressed yet waits until `from` tokens are staged, and for 16 where its
  /// segment is to be frozen.
  Status commit(SegmentId segment, uint32_t from = 0);
  Status commit_all(uint32_t from = 0);

  /// Gives bits to the KV heads, of one model's layers under one spec of mixed bits, whose errors count more by the
  /// latest queries, and takes them from the others: as many on average as the spec says, which one head by itself may
  /// have to round down. Without queries they keep what they have: the spec's, or what continue_segment() gave them.
  /// For a prompt that the next commit() will compress; a segment that is frozen keeps its bits, and one without such a
  /// call has the spec's in each head. Takes about 2 % of a prefill's time. Errors: out of memory; nothing changes
  /// then.
  static Status share_bits(std::span<LayerCache* const> layers, SegmentId segment, uint32_t n_threads = 1);
  /// Among the heads of this layer alone.
  Status share_bits(SegmentId segment) {
    LayerCache* const self = this;
    return share_bits(std::span(&self, 1), segment);
  }

  /// `next`, which holds no tokens, is to hold what follows those of `segment`. The places in hi for recent tokens
  /// (importance=h2o) pass on to it, with all that `segment` itself had got so: of one text, as many are recent however
  /// many segments it has. Until queries of its own say otherwise, its KV heads have the bits that theirs have
  /// (docs/adr/0014). Errors: `next` holds tokens; out of memory, some heads of `next` may then have no such places.
  Status continue_segment(SegmentId segment, SegmentId next);

  /// What memory_usage() grows by, at most, when n_tokens more are put into `segment`, and what is needed besides for a
  /// moment. compressed: they and what is staged are committed, n_at_once tokens after their put; else they stay
  /// staged.
  struct Growth {
    int64_t lasting = 0;      ///< afterwards
    uint64_t transient = 0;   ///< beyond `lasting`, while tokens are put and tiers grow
    uint64_t compressed = 0;  ///< of hi and lo, while what they are made of is still staged
  };
  Growth growth(SegmentId segment, uint32_t n_tokens, uint32_t n_at_once, bool compressed) const;

  /// Bytes that lower(keep, ...) gives back by its share alone.
  uint64_t freed_by(double keep) const;

  /// Makes what is stored, and what will be, smaller: hi holds floor(keep*S) of S tokens from now on, lo has `bits` (of
  /// `mixed` on average, else 2, 3 or 4) where that is less than it has. Needs next to no memory: tokens are encoded
  /// anew in place. spec() tells what holds afterwards. Errors: out of memory, some heads may have been done then; a
  /// call that repeats it goes on.
  Status lower(double keep, double bits);

  /// Gives back the memory that the segment has reserved for tokens to come, 3 to 5 % of what it takes: for sequences
  /// that rest.
  void trim(SegmentId segment);

  /// From now on, or no longer: as soon as 16 tokens of a segment are staged they have 8 bits an element instead of 16,
  /// encoded anew in place, and so have those to come until the next commit; what attention reads differs little. For
  /// engines that would have to commit a prompt before its end for want of room. What has bytes keeps them. Not where
  /// something is compressed already, or neither tier of the spec has codes. Where memory for it runs out, tokens stay
  /// as they are.
  void stage_in_bytes(bool on);

  /// Forgets cells, wherever they are. Unknown cells are no error.
  void erase(SegmentId segment, std::span<const Cell> cells);
  void erase_if(SegmentId segment, Cell first, Cell last);  ///< cells first..last-1
  void clear();                                             ///< all segments
  /// Forgets every cell of the segment that is not in `live`: bit c % 64 of word c / 64 is cell c.
  void retain(SegmentId segment, std::span<const uint64_t> live);

  /// Of one KV head, up to 16 at a time: keys[cells.size()][head_dim_k] in the engine's coordinates. Bit i of the
  /// result: what was left in row i is stored instead of what was there.
  using VisitKeys = std::function<uint32_t(std::span<const Cell> cells, uint32_t kv_head, std::span<float> keys)>;
  /// Visits every stored key of the segment; what is changed stays in its tier, and values stay as they are. For
  /// engines that rotate keys to other positions. Threads of one call share the heads. Slow; allocates nothing.
  void visit_keys(SegmentId segment, const VisitKeys& visit, uint32_t thread = 0, uint32_t n_threads = 1);

  /// Copies what the segment has staged as halves in the engine's coordinates, which is everything under an
  /// uncompressed spec (Spec::uncompressed): KV head h of cell c goes to k + c * k_stride + h * head_dim_k, and to v
  /// alike. Strides in halves.
  void read_f16(SegmentId segment, uint16_t* k, size_t k_stride, uint16_t* v, size_t v_stride) const;

  uint64_t n_cells(SegmentId segment) const;   ///< live cells, evicted ones included
  uint64_t n_staged(SegmentId segment) const;  ///< tokens that commit would compress
  MemoryUsage memory_usage() const;
  uint64_t bytes_used() const { return memory_usage().total(); }

  /// Appends to `to`, as bytes, what the segment holds of cells[0], cells[1], ...: the tiers as they are stored,
  /// nothing decoded (format: src/layer/segment_format.hpp). Errors: an unused segment, out of memory.
  Status save_segment(SegmentId segment, std::span<const Cell> cells, std::vector<uint8_t>& to) const;
  /// Reads bytes that save_segment() of a cache of the same shape and spec wrote for n_cells cells. Bytes may be
  /// hostile; nothing of the cache changes. Errors: damaged bytes, out of memory.
  Result<LoadedSegment> load_segment(std::span<const uint8_t> bytes, uint32_t n_cells) const;
  /// Makes `loaded` the content of `segment`; cells[i] is the new number of the i-th cell that was saved. The cells
  /// must be in no other segment that is attended together with this one.
  Status adopt_segment(SegmentId segment, LoadedSegment loaded, std::span<const Cell> cells);
  /// The content of `from` in `to` as well, under the same cell numbers.
  Status copy_segment(SegmentId from, SegmentId to);

  /// A copy of a cache in which nothing was compressed yet, to be compressed under another spec: how several policies
  /// start from one exact prefill. Errors: something was compressed already; the new spec needs importance scores or
  /// query statistics that this one's spec did not record.
  Result<std::unique_ptr<LayerCache>> clone(const Spec& spec, std::shared_ptr<MemoryAccount> account = nullptr) const;

  /// What KV head `kv_head` holds of `segment`, decoded; slow. For tests, the reference and inspection.
  std::vector<StoredToken> dump(SegmentId segment, uint32_t kv_head) const;

  struct Impl;

 private:
  explicit LayerCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Attention as the formula says, in double precision over dump(): the oracle of every kernel. Same arguments as
/// LayerCache::attend; records and commits nothing.
Status reference_attend(const LayerCache& cache, const LayerAttendArgs& args);

}  // namespace mikv
