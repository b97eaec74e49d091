// Any sequence of operations against the model of a cache.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <string>

#include "cache_model.hpp"

namespace mikv::test::cache_model_test {
namespace {

constexpr LayerShape kShape{4, 2, 16, 8};

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
    testing::Values("full", "h2o", "h2o:keep=0.5,importance=window", "streaming:keep=0.3,sinks=3", "random:keep=0.4",
                    "snapkv:keep=0.4", "scissorhands:keep=0.4", "fastgen:keep=0.3",
                    "mikv-paper-int4:quantiser=symmetric", "mikv:importance=snapkv,keep=0.3", "rtn2", "rtn8",
                    "mikv:importance=full", "mikv-paper", "llm-int8", "mikv-paper-int8:keep=0.3,outlier=f16", "mikv",
                    "mikv:outlier=center,lo=int2,keep=0.35", "mikv:outlier=center,lo=evict,hi=int4",
                    "mikv:outlier=center,lo=int5,hi=int5", "mikv:lo=int3,outlier=none,keep=1",
                    "mikv-max:prefill=streaming", "mikv:bits=5", "kivi2:group=head,residual=20", "rtn8:keys=channel",
                    "kivi4:group=half,importance=h2o,keep=0.3", "residual:residual=30",
                    "mikv:importance=residual,residual=24", "mikv:lo=int3,outlier=hadamard,keep=0.5,importance=random"),
    name_of_spec);

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

TEST(CacheModelCasesTest, EmptyingAndRefillingASegment) {
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

// Blocks of fewer bits leave room behind them, where the old blocks' bytes are no numbers.
TEST(CacheModelCasesTest, GrowingIntoWhatLoweringLeft) {
  for (const char* spec : {"mikv-paper", "mikv", "rtn4", "kivi4:group=head,residual=10"}) {
    Model model(spec);
    model.apply({Kind::put, 0, 0, 24});
    model.apply({Kind::attend, 0, 0, 0});
    model.apply({Kind::put, 0, 15, 15});
    model.apply({Kind::put, 0, 45, 22});
    model.apply({Kind::commit, 0, 0, 0});
    model.apply({Kind::put, 0, 0, 7});
    model.apply({Kind::lower, 0, 0, 0});
    for (uint32_t cell = 0; cell < 30; ++cell) model.apply({Kind::step, 0, cell, 0});
  }
}

TEST(CacheModelCasesTest, PutRefusesAndStoresNothing) {
  Random random(21);
  Tokens tokens(kShape, 3, random);
  const auto layer = make_layer(kShape, "mikv");
  const auto error_of = [&](SegmentId segment, const std::vector<Cell>& cells) {
    return layer->put(segment, cells, tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride).message();
  };
  EXPECT_NE(error_of(0, {1, 2, 1}).find("cell 1"), std::string::npos);
  EXPECT_NE(error_of(0, {1, kMaxCells, 2}).find(std::to_string(kMaxCells)), std::string::npos);
  EXPECT_NE(error_of(kMaxSegments, {1, 2, 3}).find(std::to_string(kMaxSegments)), std::string::npos);
  EXPECT_EQ(layer->n_cells(0), 0u);
  EXPECT_EQ(error_of(0, {7, 8, 9}), "");
  EXPECT_NE(error_of(0, {7, 7, 7}), "");
  EXPECT_EQ(layer->n_cells(0), 3u);
  EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 3u);
  EXPECT_EQ(error_of(0, {}), "");
  EXPECT_EQ(error_of(kMaxSegments - 1, {kMaxCells - 1, 0, 5}), "");
  EXPECT_EQ(layer->n_cells(kMaxSegments - 1), 3u);
  EXPECT_TRUE(layer->commit(kMaxSegments + 7).ok());  // nothing there to compress
  layer->erase(kMaxSegments + 7, std::vector<Cell>{1});
  EXPECT_EQ(layer->n_cells(kMaxSegments + 7), 0u);
  EXPECT_TRUE(layer->dump(kMaxSegments + 7, 0).empty());
  EXPECT_TRUE(layer->dump(0, kShape.n_kv_heads).empty());
}

// As long as nothing is compressed; then everything is, however few tokens come.
TEST(CacheModelCasesTest, CommitWaitsForTokens) {
  for (const char* spec : {"mikv:keep=0.1", "rtn4", "h2o:keep=0.1"}) {
    Random random(23);
    const auto layer = make_layer(kShape, spec);
    const Tokens first(kShape, 39, random), one(kShape, 1, random);
    put(*layer, 0, cell_range(0, 39), first);
    ASSERT_TRUE(layer->commit(0, 40).ok());
    EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 39u) << spec;
    Request step(kShape, 1, random);
    step.commit = true;
    step.commit_from = 40;
    run(*layer, step);
    EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 39u) << spec;
    put(*layer, 0, cell_range(39, 1), one);
    run(*layer, step);
    EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 0u) << spec;
    put(*layer, 0, cell_range(40, 1), one);
    ASSERT_TRUE(layer->commit(0, 1000).ok());
    EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 0u) << spec;
  }
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
    ASSERT_TRUE(copy.ok()) << copy.message();
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
}  // namespace mikv::test::cache_model_test
