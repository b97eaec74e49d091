// Any sequence of operations against a model that is a std::map: after each one the tiers of every KV head partition the
// live cells, hold what was put, and keep their budgets.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <ostream>
#include <set>
#include <string>

#include "policy/importance.hpp"
#include "test_attention.hpp"

namespace mikv::test {
namespace {

constexpr LayerShape kShape{4, 2, 16, 8};
constexpr uint32_t kFrames = 2;
constexpr uint32_t kCells = 150;  // of each frame; frame f has cells from f * 1000, except that some are shared
constexpr uint32_t kFrameTokens = 16;  // a centre of fewer tokens means nothing: the frame stays staged until then

enum class Kind { put, attend, step, commit, commit_all, erase, erase_range, clear, retain, reload, copy, rotate, lower };

/// One operation; the numbers mean what its kind needs.
struct Operation {
  Kind kind;
  uint32_t frame, cell, count;
};

std::ostream& operator<<(std::ostream& out, const Operation& operation) {
  const char* const names[] = {"put", "attend", "step", "commit", "commit_all", "erase", "erase_range", "clear",
                               "retain", "reload", "copy", "rotate", "lower"};
  return out << names[size_t(operation.kind)] << "(frame " << operation.frame << ", cell " << operation.cell << ", count "
             << operation.count << ")";
}

rc::Gen<Operation> any_operation() {
  const auto kind = rc::gen::weightedElement<Kind>({{6, Kind::put}, {3, Kind::attend}, {6, Kind::step}, {4, Kind::commit},
                                                    {1, Kind::commit_all}, {3, Kind::erase}, {1, Kind::erase_range},
                                                    {1, Kind::clear}, {2, Kind::retain}, {2, Kind::reload}, {1, Kind::copy},
                                                    {1, Kind::rotate}, {1, Kind::lower}});
  return rc::gen::apply([](Kind k, uint32_t frame, uint32_t cell, uint32_t count) { return Operation{k, frame, cell, count}; },
                        kind, rc::gen::inRange(0u, kFrames), rc::gen::inRange(0u, kCells), rc::gen::inRange(0u, 40u));
}

using Values = std::array<float, kShape.n_kv_heads>;  // every channel of a token's K and V has the head's value

/// What the cache must hold of a frame.
struct ModelFrame {
  std::map<Cell, Values> cells;
  bool compressed = false;                               // since clear()
  std::array<std::map<Cell, TierName>, kShape.n_kv_heads> tiers;  // as last seen, to tell what an operation did
};

class Model {
 public:
  explicit Model(const std::string& spec) : layer_(make_layer(kShape, spec)), random_(20) {}

  void apply(const Operation& operation) {
    const FrameId frame = operation.frame;
    // Cells 0..49 are numbers of both frames: frames do not share them, they only look alike.
    const Cell first = operation.cell < 50 ? operation.cell : operation.cell + 1000 * frame;
    switch (operation.kind) {
      case Kind::put: put_cells(frame, first, operation.count); break;
      case Kind::attend: attend(operation.count % 5 + 1, false); break;
      case Kind::step:
        put_cells(frame, first, 1);
        attend(1, true);
        break;
      case Kind::commit:
        RC_ASSERT(layer_->commit(frame).ok());
        committed(frame);
        break;
      case Kind::commit_all:
        RC_ASSERT(layer_->commit_all().ok());
        for (FrameId each = 0; each < kFrames; ++each) committed(each);
        break;
      case Kind::erase: erase(frame, first, operation.count); break;
      case Kind::erase_range:
        layer_->erase_if(frame, first, first + operation.count);
        for (auto& [id, model] : frames_)
          if (id == frame) forget(model, first, first + operation.count);
        break;
      case Kind::clear:
        layer_->clear();
        frames_.clear();
        break;
      case Kind::retain: retain(frame, first, operation.count); break;
      case Kind::reload: reload(frame, operation.count); break;
      case Kind::copy:
        RC_ASSERT(layer_->copy_frame(0, 1).ok());
        frames_[1] = frames_[0];
        break;
      case Kind::rotate: rotate(frame, first, operation.count); break;
      case Kind::lower: lower(); break;
    }
    check();
  }

 private:
  void put_cells(FrameId frame, Cell first, uint32_t count) {
    Tokens tokens(kShape, count, random_);
    std::vector<Cell> cells;
    ModelFrame& model = frames_[frame];
    for (uint32_t i = 0; i < count; ++i) {
      cells.push_back(first + (count - 1 - i) * 2);  // neither rising nor dense
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        const float value = float(n_put_++ % 2048) / 64.0f - 16.0f;  // distinct, and exact in f16
        std::fill_n(tokens.key(i, head), kShape.head_dim_k, value);
        std::fill_n(tokens.value(i, head), kShape.head_dim_v, -value);
        model.cells[cells.back()][head] = value;
        model.tiers[head][cells.back()] = TierName::staged;
      }
    }
    put(*layer_, frame, cells, tokens);
  }

  void attend(uint32_t n_tokens, bool and_commit) {
    Request request(kShape, n_tokens, random_);
    request.record = true;
    request.commit = and_commit;
    const std::vector<float> out = run(*layer_, request);
    for (const float x : out) RC_ASSERT(std::isfinite(x));
    if (!and_commit) return;
    for (FrameId frame = 0; frame < kFrames; ++frame) committed(frame);
  }

  void erase(FrameId frame, Cell first, uint32_t count) {
    std::vector<Cell> cells;
    for (uint32_t i = 0; i < count; ++i) cells.push_back(first + 3 * (i / 2));  // some twice, many unknown
    cells.push_back(kMaxCells - 1);
    layer_->erase(frame, cells);
    if (!frames_.count(frame)) return;
    for (const Cell cell : cells) forget(frames_[frame], cell, cell + 1);
  }

  void retain(FrameId frame, Cell first, uint32_t count) {
    // All but `count` cells from `first`, and without the last words of the bitmap if that is long.
    std::vector<uint64_t> live((first + count) / 64 + 3, ~uint64_t{0});
    for (Cell cell = first; cell < first + count; ++cell) live[cell / 64] &= ~(uint64_t{1} << (cell % 64));
    layer_->retain(frame, live);
    forget(frames_[frame], first, first + count);
    forget(frames_[frame], Cell(live.size() * 64), kMaxCells);
  }

  /// Saves the frame and loads it again, under other numbers and back.
  void reload(FrameId frame, uint32_t shift) {
    const ModelFrame& model = frames_[frame];
    if (model.cells.empty()) return;
    std::vector<Cell> cells, others;
    for (const auto& [cell, values] : model.cells) cells.push_back(cell);
    for (const Cell cell : cells) others.push_back(cell + 7 * shift);
    for (const auto& [from, to] : {std::pair(cells, others), std::pair(others, cells)}) {
      std::vector<uint8_t> bytes;
      RC_ASSERT(layer_->save_frame(frame, from, bytes).ok());
      auto loaded = layer_->load_frame(bytes, uint32_t(from.size()));
      RC_ASSERT(loaded.ok());
      RC_ASSERT(layer_->adopt_frame(frame, std::move(loaded).value(), to).ok());
    }
  }

  /// Other keys in some cells, in the tier that they are in.
  void rotate(FrameId frame, Cell first, uint32_t count) {
    ModelFrame& model = frames_[frame];
    layer_->visit_keys(frame, [&](Cell cell, uint32_t head, std::span<float> key) {
      RC_ASSERT(model.cells.count(cell) == 1);
      if (cell < first || cell >= first + count) return false;
      // Small enough for any frame; values stay, so that a cell's key and value differ from now on.
      std::fill(key.begin(), key.end(), model.cells[cell][head]);
      return true;
    });
  }

  void lower() {
    const Spec before = layer_->spec();
    RC_ASSERT(layer_->lower(before.keep * 0.7, before.mixed() ? before.bits - 0.25 : 2.0).ok());
    for (FrameId frame = 0; frame < kFrames; ++frame) {
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        const TierCounts counts = count_tiers(layer_->dump(frame, head));
        if (counts.staged || before.importance == Importance::full) continue;
        RC_ASSERT(counts.hi <= policy::hi_budget(layer_->spec().keep, layer_->n_cells(frame)));
      }
    }
  }

  static void forget(ModelFrame& model, Cell first, Cell last) {
    model.cells.erase(model.cells.lower_bound(first), model.cells.lower_bound(last));
    for (auto& tiers : model.tiers) tiers.erase(tiers.lower_bound(first), tiers.lower_bound(last));
  }

  /// What commit() must have done, given the tiers before it.
  void committed(FrameId frame) {
    const auto found = frames_.find(frame);
    if (found == frames_.end()) return;
    ModelFrame& model = found->second;
    const Spec& spec = layer_->spec();
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      const auto& before = model.tiers[head];
      uint64_t n_staged = 0, n_hi = 0;
      for (const auto& [cell, tier] : before) n_staged += tier == TierName::staged, n_hi += tier == TierName::hi;
      const std::vector<StoredToken> tokens = layer_->dump(frame, head);
      const TierCounts after = count_tiers(tokens);

      const bool may_wait = spec.needs_frame() && n_staged < kFrameTokens && (!model.compressed || n_staged == before.size());
      const bool must_wait = spec.uncompressed() || (spec.needs_frame() && n_staged < kFrameTokens && !model.compressed);
      if (after.staged > 0 || n_staged == 0) {  // nothing was compressed
        RC_ASSERT(n_staged == 0 || must_wait || may_wait);
        RC_ASSERT(after.staged == n_staged);
        RC_ASSERT(after.hi == n_hi);
        continue;
      }
      RC_ASSERT(!must_wait);
      const uint64_t budget = spec.importance == Importance::full ? model.cells.size()
                                                                  : policy::hi_budget(spec.keep, model.cells.size());
      RC_ASSERT(after.hi == std::min(n_hi + n_staged, budget));
      for (const StoredToken& token : tokens) {
        const TierName was = before.at(token.cell);
        if (token.tier == TierName::hi) RC_ASSERT(was == TierName::hi || was == TierName::staged);  // nobody is promoted
        if (was == TierName::lo || was == TierName::evicted) RC_ASSERT(token.tier == was);
      }
      if (head + 1 == kShape.n_kv_heads) model.compressed = true;
    }
  }

  void check() {
    uint64_t n_elements = 0;
    TierCounts sum;
    for (FrameId frame = 0; frame < kFrames; ++frame) {
      ModelFrame& model = frames_[frame];
      RC_ASSERT(layer_->n_cells(frame) == model.cells.size());
      n_elements += model.cells.size() * kShape.n_kv_heads * (kShape.head_dim_k + kShape.head_dim_v);
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        const std::vector<StoredToken> tokens = sorted_dump(*layer_, frame, head);
        check_head(model, head, tokens);
        const TierCounts counts = count_tiers(tokens);
        if (!layer_->spec().uncompressed()) RC_ASSERT(layer_->n_staged(frame) == counts.staged);
        sum.staged += counts.staged, sum.hi += counts.hi, sum.lo += counts.lo, sum.evicted += counts.evicted;
      }
    }
    const MemoryUsage usage = layer_->memory_usage();
    RC_ASSERT(usage.n_elements == n_elements);
    RC_ASSERT(usage.n_staged_tokens == sum.staged);
    RC_ASSERT(usage.n_hi_tokens == sum.hi);
    RC_ASSERT(usage.n_lo_tokens == sum.lo);
    RC_ASSERT(usage.n_evicted_tokens == sum.evicted);
    RC_ASSERT(layer_->bytes_used() == usage.total());
    check_bytes(usage, sum);
  }

  /// The tokens of a head, by cell, are the model's cells, once each, with what was put.
  void check_head(ModelFrame& model, uint32_t head, const std::vector<StoredToken>& tokens) {
    RC_ASSERT(tokens.size() == model.cells.size());
    auto expected = model.cells.begin();
    for (const StoredToken& token : tokens) {
      RC_ASSERT(token.cell == expected->first);
      check_payload(token, expected->second[head]);
      model.tiers[head][token.cell] = token.tier;
      ++expected;
    }
  }

  /// Constant rows are exact in every format, unless a balancer or rotation makes them vary; then they are close.
  void check_payload(const StoredToken& token, float value) {
    const bool evicted = token.tier == TierName::evicted;
    RC_ASSERT(token.k.size() == (evicted ? 0 : kShape.head_dim_k));
    RC_ASSERT(token.v.size() == (evicted ? 0 : kShape.head_dim_v));
    if (evicted) return;
    const Spec& spec = layer_->spec();
    const bool exact = token.tier == TierName::staged || !(spec.needs_frame() || spec.hadamard);
    if (spec.balancer && !exact) return;  // its b may spread a constant row over any range
    // A centre is a half, and so is the zero of a group of k - mu: two roundings of at most 32. A rotated constant row of
    // 16 is one channel of 4 * 16 among zeros: half a step of 64 / 3 at INT2, spread over the row again by 1/4 or 1/sqrt(8).
    const double k_bound = exact ? 0.0 : spec.hadamard ? 16.0 : 2.0 * half_rounding(32.0);
    for (const float x : token.k) RC_ASSERT(std::abs(double(x) - value) <= k_bound);
    for (const float x : token.v) RC_ASSERT(std::abs(double(x) + value) <= (exact || !spec.hadamard ? 0.0 : 16.0));
  }

  void check_bytes(const MemoryUsage& usage, const TierCounts& counts) {
    const Spec& spec = layer_->spec();
    const uint64_t elements = kShape.head_dim_k + kShape.head_dim_v;
    const uint64_t padded = 16 + 16;  // head dimensions may be padded to 16 channels
    const auto within = [](uint64_t bytes, uint64_t low, uint64_t high) { return bytes >= low && bytes <= high; };
    RC_ASSERT(within(usage.staged, counts.staged * elements * 2, counts.staged * padded * 2));
    const uint64_t hi_bits = format_bits(spec.hi), lo_bits = format_bits(spec.lo);
    RC_ASSERT(within(usage.hi, counts.hi * elements * hi_bits / 8, counts.hi * padded * hi_bits / 8));
    const uint64_t least = spec.mixed() ? 1 : lo_bits, most = spec.mixed() ? 4 : lo_bits;
    RC_ASSERT(within(usage.lo, counts.lo * elements * least / 8, counts.lo * padded * most / 8));
    RC_ASSERT(usage.ids >= (counts.staged + counts.hi + counts.lo) * sizeof(Cell));
    RC_ASSERT(usage.scores >= (counts.staged + counts.hi) * sizeof(float) * (spec.importance == Importance::h2o));
  }

  std::unique_ptr<LayerCache> layer_;
  Random random_;
  uint32_t n_put_ = 0;
  std::map<FrameId, ModelFrame> frames_;
};

void any_sequence(const std::string& spec) {
  const bool holds = rc::check(spec, [&] {
    const auto operations = *rc::gen::container<std::vector<Operation>>(any_operation());
    Model model(spec);
    for (const Operation& operation : operations) model.apply(operation);
  });
  EXPECT_TRUE(holds) << spec;
}

class CacheModelTest : public testing::TestWithParam<const char*> {};

TEST_P(CacheModelTest, AnySequenceOfOperations) { any_sequence(GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Specs, CacheModelTest,
    testing::Values("full", "h2o", "h2o:keep=0.5,importance=window", "streaming:keep=0.3,sinks=3", "random:keep=0.4", "rtn2",
                    "rtn8", "mikv:importance=full", "mikv-paper", "mikv", "mikv:outlier=center,lo=int2,keep=0.35",
                    "mikv:outlier=center,lo=evict,hi=int4", "mikv:lo=int3,outlier=none,keep=1", "mikv-max:prefill=streaming",
                    "mikv:lo=int3,outlier=hadamard,keep=0.5,importance=random"),
    [](const auto& parameter) {
      std::string name(parameter.param);
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

// Sequences that broke a version of the cache, or easily could.
TEST(CacheModelCasesTest, OverwritingEveryStagedToken) {
  for (const char* spec : {"full", "mikv", "rtn4"}) {
    Model model(spec);
    for (const uint32_t count : {1u, 20u, 20u, 1u, 39u}) model.apply({Kind::put, 0, 60, count});
    model.apply({Kind::attend, 0, 0, 1});
    model.apply({Kind::commit, 0, 0, 0});
    model.apply({Kind::put, 0, 60, 39});
    model.apply({Kind::commit, 0, 0, 0});
  }
}

TEST(CacheModelCasesTest, EmptyingAndRefillingAFrame) {
  for (const char* spec : {"full", "mikv", "rtn4", "h2o"}) {
    Model model(spec);
    for (int round = 0; round < 3; ++round) {
      model.apply({Kind::put, 1, 60, 30});
      model.apply({Kind::commit, 1, 0, 0});
      model.apply({Kind::step, 1, 40, 0});
      model.apply({Kind::erase_range, 1, 60, 200});
      model.apply({Kind::erase_range, 1, 40, 1});
      model.apply({Kind::attend, 1, 0, 1});
    }
  }
}

TEST(CacheModelCasesTest, PutRefusesAndStoresNothing) {
  Random random(21);
  Tokens tokens(kShape, 3, random);
  const auto layer = make_layer(kShape, "mikv");
  const auto error_of = [&](FrameId frame, const std::vector<Cell>& cells) {
    return layer->put(frame, cells, tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride).error();
  };
  EXPECT_NE(error_of(0, {1, 2, 1}).find("cell 1"), std::string::npos);
  EXPECT_NE(error_of(0, {1, kMaxCells, 2}).find(std::to_string(kMaxCells)), std::string::npos);
  EXPECT_NE(error_of(kMaxFrames, {1, 2, 3}).find(std::to_string(kMaxFrames)), std::string::npos);
  EXPECT_EQ(layer->n_cells(0), 0u);
  EXPECT_EQ(error_of(0, {7, 8, 9}), "");
  EXPECT_NE(error_of(0, {7, 7, 7}), "");
  EXPECT_EQ(layer->n_cells(0), 3u);
  EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 3u);
  EXPECT_EQ(error_of(0, {}), "");
  EXPECT_EQ(error_of(kMaxFrames - 1, {kMaxCells - 1, 0, 5}), "");
  EXPECT_EQ(layer->n_cells(kMaxFrames - 1), 3u);
  EXPECT_TRUE(layer->commit(kMaxFrames + 7).ok());  // nothing there to compress
  layer->erase(kMaxFrames + 7, std::vector<Cell>{1});
  EXPECT_EQ(layer->n_cells(kMaxFrames + 7), 0u);
  EXPECT_TRUE(layer->dump(kMaxFrames + 7, 0).empty());
  EXPECT_TRUE(layer->dump(0, kShape.n_kv_heads).empty());
}

TEST(CacheModelCasesTest, CloneStartsAnotherSpecFromTheSamePrompt) {
  Random random(22);
  Tokens tokens(kShape, 40, random);
  const auto layer = make_layer(kShape, "mikv:keep=0.1");
  put(*layer, 3, cell_range(10, 40), tokens);
  Request request(kShape, 4, random);
  request.record = true;
  run(*layer, request);
  const std::vector<StoredToken> before = sorted_dump(*layer, 3, 1);
  for (const char* spec : {"full", "mikv:keep=0.1", "rtn4", "h2o", "mikv-max"}) {
    auto copy = layer->clone(Spec::parse(spec).value());
    ASSERT_TRUE(copy.ok()) << copy.error();
    EXPECT_EQ(copy.value()->n_cells(3), 40u);
    const std::vector<StoredToken> cloned = sorted_dump(*copy.value(), 3, 1);
    ASSERT_EQ(cloned.size(), before.size());
    for (size_t i = 0; i < cloned.size(); ++i) {
      EXPECT_EQ(cloned[i].k, before[i].k);
      EXPECT_EQ(cloned[i].v, before[i].v);
      const bool scored = copy.value()->spec().importance != Importance::full;  // full has no use for scores
      EXPECT_EQ(cloned[i].score, scored ? before[i].score : 0.0f);
    }
    commit(*copy.value(), 3);
    const auto direct = make_layer(kShape, spec);  // the same prompt put directly compresses to the same tiers
    put(*direct, 3, cell_range(10, 40), tokens);
    run(*direct, request);
    commit(*direct, 3);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      const auto a = sorted_dump(*copy.value(), 3, head), b = sorted_dump(*direct, 3, head);
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_EQ(a[i].tier, b[i].tier) << spec << " cell " << a[i].cell;
        EXPECT_EQ(a[i].k, b[i].k) << spec << " cell " << a[i].cell;
      }
    }
  }
  commit(*layer, 3);
  EXPECT_FALSE(layer->clone(Spec::parse("full").value()).ok());
  EXPECT_EQ(count_tiers(layer->dump(3, 0)).hi, 4u);
}

}  // namespace
}  // namespace mikv::test
