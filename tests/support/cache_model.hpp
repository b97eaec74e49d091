// A cache beside a model of it that is a std::map: after each operation the tiers of every KV head partition the live
// cells, hold what was put, and keep their budgets. Where memory runs out, an operation has changed nothing, or what
// its contract says.
#pragma once

#include <rapidcheck.h>

#include <array>
#include <functional>
#include <map>
#include <ostream>
#include <string>

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
  static constexpr LayerShape kShape{4, 2, 16, 8};
  static constexpr uint32_t kSegments = 2;
  using Values = std::array<float, kShape.n_kv_heads>;  // every channel of a token's K and V has the head's value

  /// What the cache must hold of a segment.
  struct Segment {
    std::map<Cell, Values> cells;
    std::array<bool, kShape.n_kv_heads> compressed{};               // since clear()
    std::array<std::map<Cell, TierName>, kShape.n_kv_heads> tiers;  // as last seen, to tell what an operation did
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
  void check_head(Segment& model, uint32_t head, const std::vector<StoredToken>& tokens);
  void check_payload(const StoredToken& token, float value);
  void check_bytes(const MemoryUsage& usage, const TierCounts& counts);

  std::unique_ptr<LayerCache> layer_;
  Faults* faults_;
  Random random_;
  uint32_t n_put_ = 0;
  bool heads_differ_ = false;  ///< a commit failed: some heads may have compressed what others have staged
  bool in_bytes_ = false;      ///< staged tokens may be
  std::map<SegmentId, Segment> segments_;
};

}  // namespace mikv::test
