// A cache beside a model of it that is a std::map: after each operation the tiers of every KV head partition the live
// cells, hold what was put, and keep their budgets. What a token holds changes only when it is encoded anew, and then
// by no more than the format's rounding in the coordinates of its tier. Where memory runs out, an operation has changed
// nothing, or what its contract says.
#pragma once

#include <rapidcheck.h>

#include <array>
#include <functional>
#include <map>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "saved_segment.hpp"
#include "test_attention.hpp"

namespace mikv::test {

enum class Kind {
  put,
  attend,
  step,
  commit,
  commit_all,
  erase,
  erase_range,
  clear,
  retain,
  reload,
  copy,
  rotate,
  lower,
  stage_in_bytes,
  trim
};

/// One operation; the numbers mean what its kind needs.
struct Operation {
  Kind kind;
  uint32_t segment, cell, count;
};

std::ostream& operator<<(std::ostream& out, const Operation& operation);
rc::Gen<Operation> any_operation();

/// Makes calls of the library fail.
class Faults {
 public:
  virtual ~Faults() = default;
  virtual void begin() = 0;  ///< what is allocated from now on may fail
  virtual bool end() = 0;    ///< true if something did
};

class Model {
 public:
  /// `faults` is borrowed; null: nothing fails.
  explicit Model(const std::string& spec, Faults* faults = nullptr);
  /// Applies the operation to both and compares them; throws as RC_ASSERT does.
  void apply(const Operation& operation);

 private:
  static constexpr uint32_t kHeads = 2, kDimK = 32;  // of keys and values; channels of a key
  static constexpr uint32_t kSegments = 2;

  /// What one KV head holds of a cell: as it was last seen, or as it was handed over since.
  struct Token {
    TokenTier tier = TokenTier::staged;
    bool in_bytes = false;  ///< staged in bytes
    std::vector<float> k, v;
    bool new_k = true, new_v = true;  ///< handed over, not seen yet
  };

  struct Range {
    double low = kInfinity, high = -kInfinity;
    void widen(double x) { low = std::min(low, x), high = std::max(high, x); }
  };

  /// What the cache must hold of a segment.
  struct Segment {
    std::set<Cell> cells;
    std::array<bool, kHeads> compressed{};  // since clear()
    std::array<std::map<Cell, Token>, kHeads> tokens;
    /// Of each channel of all keys so far: what a block's scales may reach over (keys=channel).
    std::array<std::array<Range, kDimK>, kHeads> ranges{};
    uint32_t n_removed = 0;  ///< tokens since the last check
  };

  /// Runs one call of the library; an error is one only if something was made to fail.
  Status attempt(const std::function<Status()>& call);
  void put_cells(SegmentId segment, Cell first, uint32_t count);
  void attend(uint32_t n_tokens, bool and_commit);
  void commit(SegmentId segment);
  void commit_all();
  void erase(SegmentId segment, Cell first, uint32_t count);
  void retain(SegmentId segment, Cell first, uint32_t count);
  void reload(SegmentId segment, uint32_t shift);
  void copy();
  void rotate(SegmentId segment, Cell first, uint32_t count);
  void lower();
  void stage_in_bytes(bool on);
  void trim(SegmentId segment);
  static void forget(Segment& model, Cell first, Cell last);
  /// What commit() must have done, given the tiers before it; `failed`: in some heads only, perhaps.
  void committed(SegmentId segment, bool failed);
  void check();
  SavedSegment saved(SegmentId segment) const;
  void check_head(Segment& model, uint32_t head, const SavedHead& saved, const std::vector<StoredToken>& tokens);
  void check_payload(const Segment& model, uint32_t head, const StoredToken& now, const SavedHead& saved) const;
  /// The same of a key in lo whose scales are by channel: other tokens of its block may have had it encoded anew.
  void check_by_channel(const Segment& model, uint32_t head, const StoredToken& now, const SavedHead& saved,
                        uint32_t n_encodes) const;
  /// Before and after n_encodes encodings in the tier that the token is in now.
  void check_encoded(std::span<const float> before, std::span<const float> now, const StoredToken& token, bool key,
                     const SavedHead& head, uint32_t n_encodes) const;
  void check_bytes(const MemoryUsage& usage, const std::vector<SavedHead>& heads) const;

  const LayerShape shape_;  // V has half a tile, so that one is padded: of all channels, or of those beside outliers
  std::unique_ptr<LayerCache> layer_;
  Faults* faults_;
  Random random_;
  bool heads_differ_ = false;    ///< a commit failed: some heads may have compressed what others have staged
  policy::Rung rung_{0.3, 4.0};  ///< of the latest lower()
  uint32_t n_lowered_ = 0;       ///< calls of lower() since the last check
  bool moves_ = false;           ///< tokens may have come to lo since the last check, or got other keys there
  std::map<SegmentId, Segment> segments_;
};

}  // namespace mikv::test
