// The rules of a context, without keys or values: sequences, step plans, when tokens are compressed, what a budget may
// give up, and the table of cells.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "context/cell_table.hpp"
#include "context/commit_rules.hpp"
#include "context/demand.hpp"
#include "context/sequences.hpp"
#include "context/step_plan.hpp"

namespace mikv::context {
namespace {

using policy::cost_of;
using policy::ladder_of;
using policy::lowered;
using policy::measured_rungs;
using policy::MeasuredRung;
using policy::Rung;

std::vector<SegmentId> seen(const Sequences& sequences, SequenceId s) {
  return {sequences.seen_by(s).begin(), sequences.seen_by(s).end()};
}

using Segments = std::vector<SegmentId>;

// ---------------------------------------------------------------- sequences

TEST(SequencesTest, ASequenceHasASegmentOnceItIsAskedFor) {
  Sequences sequences(2, true);
  EXPECT_EQ(sequences.own(0), kMaxSegments);
  const SegmentId segment = sequences.segment_for_tokens(0);
  EXPECT_EQ(sequences.segment_for_tokens(0), segment);
  EXPECT_EQ(sequences.own(0), segment);
  EXPECT_NE(sequences.segment_for_tokens(1), segment);
}

TEST(SequencesTest, StreamsAreOnePerSequenceUnlessUnified) {
  const Sequences unified(3, true), split(3, false);
  EXPECT_EQ(unified.n_streams(), 1u);
  EXPECT_EQ(unified.stream_of(2), 0u);
  EXPECT_EQ(split.n_streams(), 3u);
  EXPECT_EQ(split.stream_of(2), 2u);
}

TEST(SequencesTest, NumbersOutOfRangeAreNotValid) {
  const Sequences sequences(3, true);
  EXPECT_TRUE(sequences.valid(2));
  EXPECT_FALSE(sequences.valid(3));
  EXPECT_FALSE(sequences.valid(-1));
}

TEST(SequencesTest, SharingShowsSegmentsButGivesNone) {
  Sequences sequences(2, true);
  const SegmentId segment = sequences.segment_for_tokens(0);
  sequences.share(0, 1);
  EXPECT_EQ(seen(sequences, 1), Segments{segment});
  EXPECT_EQ(sequences.own(1), kMaxSegments);
  EXPECT_TRUE(sequences.seen_by_others(segment, 0));
  EXPECT_NE(sequences.segment_for_tokens(1), segment);
}

TEST(SequencesTest, SharingTwiceShowsASegmentOnce) {
  Sequences sequences(2, true);
  const SegmentId segment = sequences.segment_for_tokens(0);
  sequences.share(0, 1);
  sequences.share(0, 1);
  EXPECT_EQ(seen(sequences, 1), Segments{segment});
}

TEST(SequencesTest, WhatIsForgottenIsSeenByNobody) {
  Sequences sequences(2, true);
  sequences.segment_for_tokens(0);
  sequences.forget(0);
  EXPECT_TRUE(seen(sequences, 0).empty());
  EXPECT_EQ(sequences.own(0), kMaxSegments);
}

TEST(SequencesTest, EmptySegmentsAreUsedAgain) {
  Sequences sequences(2, true);
  const SegmentId first = sequences.segment_for_tokens(0), second = sequences.segment_for_tokens(1);
  sequences.drop_segments([&](SegmentId segment) { return segment == first; });
  EXPECT_TRUE(seen(sequences, 0).empty());
  EXPECT_EQ(seen(sequences, 1), Segments{second});
  EXPECT_EQ(sequences.segment_for_tokens(0), first);
}

TEST(SequencesTest, ASequenceThatIsCutBackContinuesWhereItThenEnds) {
  Sequences sequences(2, true);
  const SegmentId first = sequences.segment_for_tokens(0), second = sequences.new_segment(0, true);
  sequences.drop_segments([&](SegmentId segment) { return segment == second; });
  EXPECT_EQ(sequences.own(0), first);
}

TEST(SequencesTest, NobodyContinuesInASegmentThatOthersSee) {
  Sequences sequences(2, true);
  const SegmentId first = sequences.segment_for_tokens(0);
  sequences.share(0, 1);
  const SegmentId second = sequences.new_segment(0, true);
  sequences.drop_segments([&](SegmentId segment) { return segment == second; });
  EXPECT_EQ(seen(sequences, 0), Segments{first});
  EXPECT_EQ(sequences.own(0), kMaxSegments);
}

TEST(SequencesTest, ClearFreesAll) {
  Sequences sequences(2, true);
  sequences.segment_for_tokens(0);
  sequences.segment_for_tokens(1);
  sequences.clear();
  int n = 0;
  sequences.for_each_segment([&](SegmentId) { ++n; });
  EXPECT_EQ(n, 0);
  EXPECT_EQ(sequences.segment_for_tokens(1), 0u);
}

TEST(SequencesTest, SegmentsEndAtTheMost) {
  Sequences sequences(1, true);
  for (uint32_t i = 0; i < kMaxSegments; ++i) ASSERT_NE(sequences.new_segment(0, false), kMaxSegments);
  EXPECT_EQ(sequences.new_segment(0, false), kMaxSegments);
}

// ---------------------------------------------------------------- step plans

Batch tokens(std::initializer_list<std::pair<SequenceId, bool>> list) {
  Batch batch;
  for (const auto& [sequence, output] : list) batch.tokens.push_back({sequence, output, 0});
  return batch;
}

StepPlan plan_of(const Batch& batch, Sequences& sequences, bool in_order = true) {
  auto plan = StepPlan::make(batch, sequences, in_order);
  EXPECT_TRUE(plan.ok());
  return plan.value();
}

TEST(StepPlanTest, TokensOfASequenceThatFollowEachOtherAreARun) {
  Sequences sequences(2, true);
  const StepPlan plan = plan_of(tokens({{0, false}, {0, true}, {1, true}, {0, true}}), sequences);
  ASSERT_EQ(plan.runs().size(), 3u);
  EXPECT_EQ(plan.runs()[0].n, 2u);
  EXPECT_EQ(plan.runs()[2].first, 3u);
  EXPECT_EQ(plan.runs()[0].segment, plan.runs()[2].segment);
  EXPECT_EQ(plan.n_tokens(), 4u);
}

TEST(StepPlanTest, OneTokenOfASequenceIsGenerated) {
  Sequences sequences(1, true);
  const StepPlan plan = plan_of(tokens({{0, true}}), sequences);
  EXPECT_TRUE(plan.runs()[0].single);
  EXPECT_TRUE(plan.runs()[0].generates);
  EXPECT_TRUE(plan.runs()[0].may_end);
}

TEST(StepPlanTest, APromptIsNotGenerated) {
  Sequences sequences(1, true);
  const StepPlan plan = plan_of(tokens({{0, false}, {0, true}}), sequences);
  EXPECT_FALSE(plan.runs()[0].single);
  EXPECT_FALSE(plan.runs()[0].generates);
  EXPECT_TRUE(plan.runs()[0].may_end);
}

TEST(StepPlanTest, APieceOfAPromptDoesNotEndIt) {
  Sequences sequences(1, true);
  EXPECT_FALSE(plan_of(tokens({{0, false}, {0, false}}), sequences).runs()[0].may_end);
}

TEST(StepPlanTest, ADraftWantsLogitsOfAllItsTokens) {
  Sequences sequences(1, true);
  const StepPlan plan = plan_of(tokens({{0, true}, {0, true}, {0, true}}), sequences);
  EXPECT_TRUE(plan.runs()[0].generates);
  EXPECT_FALSE(plan.runs()[0].single);
}

TEST(StepPlanTest, ATextThatIsMeasuredIsNoDraft) {
  Sequences sequences(1, true);
  Batch batch;
  batch.tokens.assign(65, Batch::Token{0, true, 0});
  EXPECT_FALSE(plan_of(batch, sequences).runs()[0].generates);
}

TEST(StepPlanTest, SequencesOutOfRangeAreRefused) {
  Sequences sequences(2, true);
  EXPECT_EQ(StepPlan::make(tokens({{2, true}}), sequences, true).error().code, ErrorCode::invalid_argument);
  EXPECT_FALSE(StepPlan::make(tokens({{-1, true}}), sequences, true).ok());
  Batch shared = tokens({{0, true}});
  shared.shared.push_back({0, 9});
  EXPECT_FALSE(StepPlan::make(shared, sequences, true).ok());
}

TEST(StepPlanTest, SequencesThatShareATokenSeeIt) {
  Sequences sequences(2, true);
  Batch batch = tokens({{0, false}, {0, true}});
  batch.shared = {{0, 1}};
  const StepPlan plan = plan_of(batch, sequences);
  EXPECT_EQ(seen(sequences, 1), Segments{plan.runs()[0].segment});
}

TEST(StepPlanTest, RunsThatSeeTheSameSegmentAttendTogether) {
  Sequences sequences(3, true);
  sequences.segment_for_tokens(0);
  sequences.share(0, 1);
  const StepPlan plan = plan_of(tokens({{0, true}, {1, true}, {2, true}}), sequences);
  EXPECT_EQ(plan.runs()[0].set, plan.runs()[1].set);
  EXPECT_NE(plan.runs()[1].set, plan.runs()[2].set);
  EXPECT_EQ(plan.segments_of_set(plan.runs()[0].set).size(), 2u);
}

TEST(StepPlanTest, RunsOfAGroupThatDoNotFollowEachOtherMakeOneGroupOfAll) {
  Sequences sequences(3, true);
  sequences.segment_for_tokens(0);
  sequences.share(0, 2);
  const StepPlan plan = plan_of(tokens({{0, true}, {1, true}, {2, true}}), sequences);
  for (const StepPlan::Run& run : plan.runs()) EXPECT_EQ(run.set, 0u);
  EXPECT_EQ(plan.segments_of_set(0).size(), 3u);
}

TEST(StepPlanTest, TokensThatAreNotInOrderShareTheSegmentOfSequence0) {
  Sequences sequences(2, true);
  const StepPlan plan = plan_of(tokens({{0, true}, {1, true}}), sequences, false);
  ASSERT_EQ(plan.runs().size(), 1u);
  EXPECT_EQ(plan.runs()[0].n, 2u);
  EXPECT_EQ(seen(sequences, 1), Segments{plan.runs()[0].segment});
}

TEST(StepPlanTest, ALongPromptMovesOnAndAShortOneStays) {
  Sequences sequences(2, true);
  Batch batch;
  batch.tokens.assign(kFirstTokens, Batch::Token{0, false, 0});
  batch.tokens.push_back({1, true, 0});
  StepPlan plan = plan_of(batch, sequences);
  const SegmentId before = plan.runs()[0].segment, other = plan.runs()[1].segment;
  const auto moves = plan.move_on(sequences, [](SegmentId) { return true; });
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0].from, before);
  EXPECT_EQ(plan.runs()[0].segment, moves[0].to);
  EXPECT_EQ(plan.runs()[1].segment, other);
  EXPECT_EQ(seen(sequences, 0), (Segments{before, moves[0].to}));
}

TEST(StepPlanTest, NothingMovesOnWhereNothingIsFull) {
  Sequences sequences(1, true);
  Batch batch;
  batch.tokens.assign(kFirstTokens, Batch::Token{0, false, 0});
  StepPlan plan = plan_of(batch, sequences);
  EXPECT_TRUE(plan.move_on(sequences, [](SegmentId) { return false; }).empty());
}

TEST(StepPlanTest, OnlyPromptsWait) {
  Sequences sequences(2, true);
  StepPlan plan = plan_of(tokens({{0, false}, {0, false}, {1, true}}), sequences);
  plan.let_wait([](SequenceId) { return 1234u; });
  EXPECT_EQ(plan.runs()[0].n_streamed, 1234u);
  EXPECT_EQ(plan.runs()[1].n_streamed, 0u);
}

TEST(StepPlanTest, ARunIsFoundByItsSequence) {
  Sequences sequences(3, false);
  const StepPlan plan = plan_of(tokens({{2, true}}), sequences);
  ASSERT_NE(plan.run_of(2), nullptr);
  EXPECT_EQ(plan.run_of(0), nullptr);
}

// ---------------------------------------------------------------- when tokens are compressed

Spec spec_of(const char* text) { return Spec::parse(text).value(); }

StepPlan::Run run_of(bool single, bool generates) {
  StepPlan::Run run;
  run.n = single ? 1 : 100;
  run.single = single;
  run.generates = generates;
  run.n_streamed = 2000;
  return run;
}

TEST(CommitRulesTest, AGeneratedTokenIsCompressedAtOnce) {
  const CommitRule rule = rule_of(spec_of("mikv"), run_of(true, true), {});
  EXPECT_TRUE(rule.commits);
  EXPECT_EQ(rule.from, kFirstTokens);
}

TEST(CommitRulesTest, ADraftWaits) { EXPECT_FALSE(rule_of(spec_of("mikv"), run_of(false, true), {}).commits); }

TEST(CommitRulesTest, APromptWaitsForItsEnd) {
  EXPECT_FALSE(rule_of(spec_of("mikv"), run_of(false, false), {}).commits);
}

TEST(CommitRulesTest, AStreamedPromptWaitsForAPiece) {
  const CommitRule rule = rule_of(spec_of("mikv:prefill=streaming"), run_of(false, false), {});
  EXPECT_TRUE(rule.commits);
  EXPECT_EQ(rule.from, 2000u);
}

TEST(CommitRulesTest, ABudgetMakesPromptsWaitForLess) {
  const CommitRule rule = rule_of(spec_of("mikv"), run_of(false, false), 1024);
  EXPECT_TRUE(rule.commits);
  EXPECT_EQ(rule.from, 1024u);
  EXPECT_EQ(rule_of(spec_of("mikv"), run_of(true, true), 0).from, 0u);
  EXPECT_EQ(rule_of(spec_of("mikv"), run_of(true, true), 1024).from, kFirstTokens) << "never for more";
}

TEST(CommitRulesTest, ASegmentIsReadyWhereSomethingIsCompressedOrEnoughIsStaged) {
  EXPECT_FALSE(is_ready(256, {255, 255}));
  EXPECT_TRUE(is_ready(256, {256, 256}));
  EXPECT_TRUE(is_ready(256, {255, 255}, 1));
  EXPECT_TRUE(is_ready(256, {10, 5}));
  EXPECT_FALSE(is_ready(UINT32_MAX, {5000, 5000}, 500));
}

TEST(CommitRulesTest, ASegmentIsFullOnceItIsCompressedAndLongEnough) {
  const Spec mixed = spec_of("mikv");
  EXPECT_FALSE(is_full(mixed, {kSegmentTokens - 1, 0}));
  EXPECT_TRUE(is_full(mixed, {kSegmentTokens, 0}));
  EXPECT_FALSE(is_full(mixed, {kSegmentTokens, kSegmentTokens})) << "nothing is compressed yet";
  EXPECT_FALSE(is_full(spec_of("rtn4"), {9999, 0})) << "no coordinates of its own";
  EXPECT_TRUE(is_full(mixed, {1024, 0}, 1024));
}

// What waits and what is compressed together: never more than kStreamedTokens in f16, until the fewest wait that may.
TEST(CommitRulesTest, FewerTokensWaitAsTheCacheGrows) {
  const Spec mikv = spec_of("mikv"), evicting = spec_of("h2o:keep=0.1");
  EXPECT_EQ(streamed_tokens(mikv, 32768, 0), kStreamedTokens);
  EXPECT_EQ(streamed_tokens(mikv, 4096, 0), 2048u) << "half of the context";
  EXPECT_EQ(streamed_tokens(mikv, 512, 0), kFirstStreamedTokens);
  uint32_t before = kStreamedTokens;
  for (uint64_t n = 512; n < 40000; n += 512) {
    const uint32_t n_waiting = streamed_tokens(mikv, 65536, n);
    EXPECT_LE(n_waiting, before);
    EXPECT_GE(n_waiting, kFirstStreamedTokens);
    if (n_waiting > kFirstStreamedTokens) {
      EXPECT_NEAR(n_waiting + double(n) * (0.08 * 8 + 0.92 * 2.7) / 16, kStreamedTokens, 1.0);
    }
    before = n_waiting;
  }
  EXPECT_EQ(before, kFirstStreamedTokens);
  EXPECT_GT(streamed_tokens(evicting, 65536, 8192), streamed_tokens(mikv, 65536, 8192)) << "what is lost takes no room";
}

// ---------------------------------------------------------------- what a budget gives up

TEST(LadderTest, MixedBitsGiveUpTheirShareThenGoDownTheMeasuredFrontier) {
  const Spec asked = spec_of("mikv");
  const std::vector<Rung> rungs = ladder_of(asked);
  ASSERT_EQ(rungs.size(), 6u);
  EXPECT_NEAR(rungs[0].keep, 0.06, 1e-12);
  EXPECT_NEAR(rungs[1].keep, 0.05, 1e-12);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(rungs[i].bits, asked.bits) << "lo stays as it is";
  for (size_t i = 2; i < 6; ++i) {
    EXPECT_EQ(rungs[i].bits, measured_rungs()[3 + i].rung.bits);
    EXPECT_EQ(rungs[i].keep, rungs[1].keep) << "what left hi is not there any more";
  }
}

TEST(LadderTest, LaddersOfMixedBitsGoDown) {
  for (const char* name : {"mikv", "mikv-hq", "mikv-max", "mikv:keep=0.2", "mikv:keep=0.012", "mikv:keep=0"}) {
    SCOPED_TRACE(name);
    const Spec asked = spec_of(name);
    Rung before{asked.keep, asked.bits};
    for (const Rung& rung : ladder_of(asked)) {
      EXPECT_LE(rung.keep, before.keep);
      EXPECT_LE(rung.bits, before.bits);
      EXPECT_FALSE(rung == before) << "gives nothing back";
      EXPECT_TRUE(Spec::parse(lowered(asked, rung).to_string())) << lowered(asked, rung).to_string();
      before = rung;
    }
    EXPECT_EQ(before.bits, measured_rungs().back().rung.bits);
  }
}

TEST(LadderTest, ShareRungsTakeNothingFromLo) {
  const auto count = [](const char* name) {
    const Spec asked = spec_of(name);
    const std::vector<Rung> rungs = ladder_of(asked);
    const size_t n = policy::n_share_rungs(asked, rungs);
    for (size_t i = 0; i < n; ++i) {
      EXPECT_GE(rungs[i].keep, 0.6 * asked.keep) << name;
      Spec lo_alone = lowered(asked, rungs[i]);
      lo_alone.keep = asked.keep;
      EXPECT_EQ(lo_alone, asked) << name;
    }
    return n;
  };
  EXPECT_EQ(count("mikv"), 2u);
  EXPECT_EQ(count("mikv-paper"), 4u);
  EXPECT_EQ(count("h2o"), 4u);
  EXPECT_EQ(count("mikv:keep=0.01"), 0u) << "there is next to nothing in hi";
  EXPECT_EQ(count("full"), 0u);
}

TEST(LadderTest, MeasuredRungsLoseMoreAsTheyGetSmaller) {
  for (size_t i = 1; i < measured_rungs().size(); ++i) {
    const MeasuredRung &larger = measured_rungs()[i - 1], &smaller = measured_rungs()[i];
    EXPECT_LT(larger.least_kld, smaller.least_kld);
    EXPECT_LT(larger.most_kld, smaller.most_kld);
    EXPECT_GT(larger.rung.bits, smaller.rung.bits);
  }
}

TEST(LadderTest, MeasuredSpecsAreTheRungs) {
  const std::vector<MeasuredSpec> specs = measured_specs();
  ASSERT_EQ(specs.size(), measured_rungs().size());
  EXPECT_EQ(specs.front().spec, "mikv:keep=0.2,bits=3.9");
  for (size_t i = 0; i < specs.size(); ++i) {
    const Spec spec = Spec::parse(specs[i].spec).value();
    EXPECT_EQ((Rung{spec.keep, spec.bits}), measured_rungs()[i].rung) << specs[i].spec;
    EXPECT_EQ(specs[i].most_kld, measured_rungs()[i].most_kld);
  }
}

TEST(LadderTest, UniformFormatsGoDownToTwoBits) {
  const Spec asked = spec_of("mikv-paper");
  std::vector<uint32_t> bits = {format_bits(asked.lo)};
  for (const Rung& rung : ladder_of(asked)) {
    const uint32_t now = format_bits(lowered(asked, rung).lo);
    if (bits.back() != now) bits.push_back(now);
  }
  EXPECT_EQ(bits, (std::vector<uint32_t>{4, 3, 2}));
}

TEST(LadderTest, WhatEvictsOnlyKeepsLess) {
  const Spec asked = spec_of("h2o");
  for (const Rung& rung : ladder_of(asked)) EXPECT_EQ(lowered(asked, rung).lo, Format::evict);
  EXPECT_DOUBLE_EQ(ladder_of(asked).back().keep, 0.01);
}

TEST(LadderTest, UncompressedCachesGiveNothingUp) { EXPECT_TRUE(ladder_of(spec_of("full")).empty()); }

TEST(LadderTest, ASpecThatIsSmallerThanARungStaysAsItIs) {
  const Spec asked = spec_of("mikv-max");
  EXPECT_EQ(lowered(asked, {0.2, 3.9}), asked);
}

TEST(LadderTest, LoweredSpecsHaveOneText) {
  const Spec asked = spec_of("mikv-hq");
  for (const Rung& rung : ladder_of(asked)) {
    const Spec spec = lowered(asked, rung);
    const auto parsed = Spec::parse(spec.to_string());
    ASSERT_TRUE(parsed.ok()) << spec.to_string();
    EXPECT_EQ(parsed.value(), spec) << spec.to_string();
  }
}

TEST(LadderTest, TheCostIsThatOfTheNextMeasuredRung) {
  EXPECT_EQ(cost_of(spec_of("mikv")), "mean KL divergence 0.0035 to 0.0057 where measured");
  EXPECT_EQ(cost_of(spec_of("mikv:bits=2")), "mean KL divergence 0.0089 to 0.0218 where measured");
  EXPECT_EQ(cost_of(spec_of("mikv:keep=0.06")), "mean KL divergence 0.0035 to 0.0069, between what was measured");
  EXPECT_NE(cost_of(spec_of("rtn4")), cost_of(spec_of("mikv")));
}

TEST(DemandTest, MicroBatchesDecideHowManyTokensOfAPromptWait) {
  EXPECT_EQ(most_waiting(1023, 0, 256), 768u);
  EXPECT_EQ(most_waiting(1023, 1, 256), 1023u) << "cut one token earlier by a neighbour";
  EXPECT_EQ(most_waiting(1024, 0, 256), 1024u);
  EXPECT_EQ(most_waiting(1000, 10, 256), 778u) << "cut ten tokens later";
  EXPECT_EQ(most_waiting(100, 0, 256), 0u);
}

// ---------------------------------------------------------------- the table of cells

Batch text(SequenceId sequence, Position first, uint32_t n) {
  Batch batch;
  for (uint32_t i = 0; i < n; ++i) batch.tokens.push_back({sequence, i + 1 == n, first + Position(i)});
  return batch;
}

TEST(CellTableTest, TokensTakeFreeCellsOfTheirStream) {
  CellTable unified(2, true, 8), split(2, false, 8);
  ASSERT_TRUE(unified.take(text(1, 0, 3)).ok());
  EXPECT_EQ(unified.taken()[2].stream, 0u);
  ASSERT_TRUE(split.take(text(1, 0, 3)).ok());
  EXPECT_EQ(split.taken()[2].stream, 1u);
  EXPECT_EQ(split.taken()[2].cell, 2u);
}

TEST(CellTableTest, AFullTableTakesNothing) {
  CellTable table(2, true, 4);
  ASSERT_TRUE(table.take(text(0, 0, 3)).ok());
  EXPECT_FALSE(table.take(text(1, 0, 2)).ok());
  EXPECT_TRUE(table.take(text(1, 0, 1)).ok());
}

TEST(CellTableTest, RefusesNegativePositionsAndUnknownSequences) {
  CellTable table(2, true, 4);
  EXPECT_FALSE(table.take(text(0, -1, 1)).ok());
  EXPECT_FALSE(table.take(text(2, 0, 1)).ok());
}

TEST(CellTableTest, WhatIsGivenBackIsFree) {
  CellTable table(1, true, 2);
  ASSERT_TRUE(table.take(text(0, 0, 2)).ok());
  table.give_back();
  EXPECT_EQ(table.last_position(0), -1);
  EXPECT_TRUE(table.take(text(0, 0, 2)).ok());
}

TEST(CellTableTest, ATokenSeesItsSequenceUpToItself) {
  CellTable table(2, true, 8);
  ASSERT_TRUE(table.take(text(0, 0, 2)).ok());
  ASSERT_TRUE(table.take(text(1, 0, 2)).ok());
  const auto mask = table.mask(0, 0, 0, 2);
  ASSERT_EQ(mask.n_cells, 4u);
  EXPECT_EQ(mask.values, (std::vector<uint16_t>{0xfc00, 0xfc00, 0, 0xfc00, 0xfc00, 0xfc00, 0, 0}));
  EXPECT_EQ(table.mask(0, 0, 1, 1).values, (std::vector<uint16_t>{0xfc00, 0xfc00, 0, 0}));
}

TEST(CellTableTest, AWindowHidesWhatIsBeforeIt) {
  CellTable table(1, true, 8);
  ASSERT_TRUE(table.take(text(0, 0, 4)).ok());
  const auto mask = table.mask(0, 2, 3, 1);
  EXPECT_EQ(mask.values, (std::vector<uint16_t>{0xfc00, 0xfc00, 0, 0}));
}

TEST(CellTableTest, ASharedCellIsFreeOnceNobodyOwnsIt) {
  CellTable table(2, true, 4);
  ASSERT_TRUE(table.take(text(0, 0, 4)).ok());
  table.copy(0, 1, -1, -1);
  EXPECT_FALSE(table.remove(0, -1, -1));
  EXPECT_EQ(table.last_position(1), 3);
  EXPECT_TRUE(table.remove(1, 2, -1));
  EXPECT_EQ(table.last_position(1), 1);
}

TEST(CellTableTest, CopiesOfARangeHaveThatRange) {
  for (const bool unified : {true, false}) {
    CellTable table(2, unified, 8);
    ASSERT_TRUE(table.take(text(0, 0, 6)).ok());
    table.copy(0, 1, 0, 3);
    EXPECT_EQ(table.last_position(1), 2) << unified;
    EXPECT_EQ(table.last_position(0), 5) << unified;
  }
}

TEST(CellTableTest, KeepRemovesTheOthers) {
  CellTable table(3, true, 8);
  for (SequenceId s = 0; s < 3; ++s) ASSERT_TRUE(table.take(text(s, 0, 2)).ok());
  table.keep(1);
  EXPECT_EQ(table.last_position(0), -1);
  EXPECT_EQ(table.last_position(1), 1);
  EXPECT_EQ(table.last_position(2), -1);
}

TEST(CellTableTest, AShiftMovesPositionsAndDropsNegativeOnes) {
  CellTable table(1, true, 8);
  ASSERT_TRUE(table.take(text(0, 0, 6)).ok());
  const auto moved = table.shift(0, 0, -1, -2);
  EXPECT_EQ(moved.at(0).size(), 4u);
  EXPECT_EQ(table.last_position(0), 3);
  EXPECT_EQ(table.live_cells().value().size(), 0u) << "no layer was declared";
}

TEST(CellTableTest, LayersWithAWindowKeepWhatCanStillBeSeen) {
  CellTable table(1, true, 128);
  table.add_layer(0, 0);
  table.add_layer(1, 4);
  ASSERT_TRUE(table.take(text(0, 0, 100)).ok());
  const auto cells = table.live_cells().value();
  EXPECT_EQ(cells.at(0).size(), 100u);
  EXPECT_EQ(cells.at(1).size(), 4u + 64u) << "a draft of 64 tokens may be taken back";
}

TEST(CellTableTest, ASavedSequenceTakesOtherCells) {
  CellTable from(2, true, 8), to(2, true, 8);
  to.add_layer(0, 0);
  ASSERT_TRUE(from.take(text(1, 3, 4)).ok());
  ASSERT_TRUE(to.take(text(0, 0, 2)).ok());
  const auto state = from.save(1, false).value();
  const auto cells = to.load(1, false, state);
  ASSERT_TRUE(cells.ok()) << cells.message();
  EXPECT_EQ(cells.value().at(0).size(), 4u);
  EXPECT_EQ(cells.value().at(0)[0].cell, 2u);
  EXPECT_EQ(to.last_position(1), 6);
}

TEST(CellTableTest, DamagedStatesAreRefused) {
  CellTable table(2, true, 8);
  ASSERT_TRUE(table.take(text(0, 0, 4)).ok());
  EngineState state = table.save(0, false).value();
  for (size_t n = 1; n < state.words.size(); n += 3) {
    EngineState cut = state;
    cut.words.resize(n);
    if (n % 16 == 0) continue;  // whole entries
    EXPECT_FALSE(table.load(1, false, cut).ok()) << n;
  }
  EXPECT_EQ(table.last_position(0), 3) << "another sequence's cells stay";
}

}  // namespace
}  // namespace mikv::context
