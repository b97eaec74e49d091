// Importance policies against orders written out in full: sort everything, take the front.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "policy/policy.hpp"
#include "test_data.hpp"

namespace mikv::policy {
namespace {

struct Tokens {
  std::vector<float> scores;
  std::vector<uint32_t> arrivals;
};

std::vector<uint32_t> victims_of(const Choice& choice, const Tokens& tokens, uint64_t n_keep) {
  std::vector<uint32_t> victims, scratch;
  choose_demotions(choice, tokens.scores, tokens.arrivals, n_keep, victims, scratch);
  return victims;
}

std::set<uint32_t> arrivals_of(const Tokens& tokens, const std::vector<uint32_t>& indices) {
  std::set<uint32_t> arrivals;
  for (const uint32_t i : indices) arrivals.insert(tokens.arrivals[i]);
  return arrivals;
}

/// Arrivals of the victims, as the header says, by sorting. Not for `random`, whose hash is its own business.
std::set<uint32_t> naive_victims(const Choice& choice, const Tokens& tokens, uint64_t n_keep) {
  const size_t n = tokens.arrivals.size();
  if (n <= n_keep || choice.importance == Importance::full) return {};
  std::vector<std::pair<uint32_t, float>> by_age;  // arrival, score
  for (size_t i = 0; i < n; ++i) by_age.emplace_back(tokens.arrivals[i], tokens.scores[i]);
  std::sort(by_age.begin(), by_age.end());
  std::vector<std::pair<uint32_t, float>> order;  // first to go first
  if (choice.importance == Importance::h2o) {
    const size_t n_recent = n_keep - size_t((1.0 - choice.recent) * double(n_keep) + 1e-6);
    order.assign(by_age.begin(), by_age.end() - ptrdiff_t(n_recent));
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  } else {
    for (const auto& token : by_age)
      if (choice.importance == Importance::window || token.first >= choice.sinks) order.push_back(token);
    for (auto token = by_age.rbegin(); token != by_age.rend();
         ++token)  // sinks that do not fit: the last of them first
      if (choice.importance == Importance::streaming && token->first < choice.sinks) order.push_back(*token);
  }
  std::set<uint32_t> victims;
  for (size_t i = 0; i < n - n_keep; ++i) victims.insert(order[i].first);
  return victims;
}

/// Tokens with distinct arrivals in any order, with gaps or without, and scores with many ties.
Tokens any_tokens() {
  Tokens tokens;
  const auto n = *rc::gen::inRange<size_t>(0, 60);
  const bool dense = *rc::gen::arbitrary<bool>();
  const auto first = *rc::gen::element<uint32_t>(0, 3, 1000, UINT32_MAX - 600);
  uint32_t arrival = first;
  for (size_t i = 0; i < n; ++i) {
    arrival += dense ? 1 : *rc::gen::inRange<uint32_t>(1, 10);
    tokens.arrivals.push_back(arrival);
    tokens.scores.push_back(float(*rc::gen::inRange(0, 8)) * 0.25f);
  }
  for (size_t i = n; i > 1; --i) std::swap(tokens.arrivals[i - 1], tokens.arrivals[*rc::gen::inRange<size_t>(0, i)]);
  return tokens;
}

RC_GTEST_PROP(PolicyProperty, SameVictimsAsSorting, ()) {
  const Tokens tokens = any_tokens();
  const size_t n = tokens.arrivals.size();
  const auto n_keep = *rc::gen::oneOf(rc::gen::inRange<size_t>(0, 62), rc::gen::just(n > 0 ? n - 1 : 0));
  for (const Importance importance : {Importance::full, Importance::h2o, Importance::window, Importance::streaming}) {
    const Choice choice{importance, *rc::gen::element(0.0, 0.3, 0.5, 0.75, 1.0),
                        *rc::gen::element<uint32_t>(0, 2, 4, 20, 1004), 1};
    const std::vector<uint32_t> victims = victims_of(choice, tokens, n_keep);
    RC_ASSERT(arrivals_of(tokens, victims) == naive_victims(choice, tokens, n_keep));
    RC_ASSERT(victims.size() == (importance == Importance::full || n <= n_keep ? 0 : n - n_keep));
  }
}

RC_GTEST_PROP(PolicyProperty, VictimsDoNotDependOnSlotOrder, ()) {
  const Tokens tokens = any_tokens();
  const size_t n = tokens.arrivals.size();
  const auto n_keep = *rc::gen::inRange<size_t>(0, n + 1);
  Tokens shuffled = tokens;
  for (size_t i = n; i > 1; --i) {
    const auto j = *rc::gen::inRange<size_t>(0, i);
    std::swap(shuffled.arrivals[i - 1], shuffled.arrivals[j]);
    std::swap(shuffled.scores[i - 1], shuffled.scores[j]);
  }
  for (const Importance importance : {Importance::h2o, Importance::window, Importance::streaming, Importance::random}) {
    const Choice choice{importance, 0.5, 4, 7};
    RC_ASSERT(arrivals_of(tokens, victims_of(choice, tokens, n_keep)) ==
              arrivals_of(shuffled, victims_of(choice, shuffled, n_keep)));
  }
}

// One at a time (generation) ends where all at once (prompt) does, for the policies that look at nothing but arrivals.
RC_GTEST_PROP(PolicyProperty, StepByStepEqualsAtOnce, ()) {
  const Tokens tokens = any_tokens();
  const size_t n = tokens.arrivals.size();
  const auto n_keep = *rc::gen::inRange<size_t>(0, n + 1);
  for (const Importance importance : {Importance::window, Importance::streaming, Importance::random}) {
    const Choice choice{importance, 0.5, 4, 7};
    Tokens left = tokens;
    std::set<uint32_t> gone;
    while (left.arrivals.size() > n_keep) {
      const std::vector<uint32_t> victim = victims_of(choice, left, left.arrivals.size() - 1);
      RC_ASSERT(victim.size() == 1u);
      gone.insert(left.arrivals[victim[0]]);
      left.arrivals.erase(left.arrivals.begin() + victim[0]);
      left.scores.erase(left.scores.begin() + victim[0]);
    }
    RC_ASSERT(gone == arrivals_of(tokens, victims_of(choice, tokens, n_keep)));
  }
}

TEST(PolicyTest, AppendsAndLeavesWhatWasThere) {
  const Tokens tokens{{3, 1, 2, 9}, {0, 1, 2, 3}};
  std::vector<uint32_t> victims{77}, scratch{5, 6};
  choose_demotions({Importance::h2o, 0.5, 0, 0}, tokens.scores, tokens.arrivals, 2, victims, scratch);
  ASSERT_EQ(victims.size(), 3u);
  EXPECT_EQ(victims[0], 77u);
  EXPECT_EQ((std::set<uint32_t>(victims.begin() + 1, victims.end())), (std::set<uint32_t>{1, 2}));
}

TEST(PolicyTest, H2oProtectsTheRecentShareRoundedUp) {
  // Budget 3: 2 recents (arrivals 4, 5, however low they score) and 1 heavy.
  const Tokens tokens{{9, 1, 7, 8, 0, 0}, {0, 1, 2, 3, 4, 5}};
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 0.5, 0, 0}, tokens, 3)), (std::set<uint32_t>{1, 2, 3}));
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 0.5, 0, 0}, tokens, 1)),
            (std::set<uint32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(victims_of({Importance::h2o, 0.5, 0, 0}, tokens, 0).size(), 6u);
  // Three quarters of 4: arrivals 3, 4, 5 and 1 heavy; all recent; none.
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 0.75, 0, 0}, tokens, 4)), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 1.0, 0, 0}, tokens, 2)), (std::set<uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 0.0, 0, 0}, tokens, 3)), (std::set<uint32_t>{1, 4, 5}));
}

TEST(PolicyTest, OddScoresHaveAnOrderToo) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tokens tokens{{nan, -0.0f, 0.0f, -1.0f, INFINITY, 0.5f}, {0, 2, 1, 3, 4, 5}};
  // Budget 3: 2 recents (4, 5); the NaN counts as the heaviest, so -1 and both zeros go, whatever their sign.
  EXPECT_EQ(arrivals_of(tokens, victims_of({Importance::h2o, 0.5, 0, 0}, tokens, 3)), (std::set<uint32_t>{1, 2, 3}));
  // One victim of equal zeros: the older.
  const Tokens zeros{{-0.0f, 0.0f, 1.0f}, {1, 0, 2}};
  EXPECT_EQ(victims_of({Importance::h2o, 0.5, 0, 0}, zeros, 2), (std::vector<uint32_t>{1}));
}

TEST(PolicyTest, EqualArrivalsStillGiveTheRightNumber) {
  const Tokens tokens{std::vector<float>(9, 1.0f), std::vector<uint32_t>(9, 5)};
  for (uint64_t n_keep = 0; n_keep <= 9; ++n_keep)
    for (const Importance importance :
         {Importance::h2o, Importance::window, Importance::streaming, Importance::random}) {
      const std::vector<uint32_t> victims = victims_of({importance, 0.5, 4, 1}, tokens, n_keep);
      EXPECT_EQ(std::set<uint32_t>(victims.begin(), victims.end()).size(), 9 - n_keep);
    }
}

TEST(PolicyTest, OneVictimOfManyNeedsNoScratch) {
  test::Random random(1);
  Tokens tokens{random.normals(400), std::vector<uint32_t>(400)};
  std::iota(tokens.arrivals.begin(), tokens.arrivals.end(), 1000u);
  std::vector<uint32_t> victims, scratch;
  victims.reserve(1);
  for (const Importance importance : {Importance::h2o, Importance::window, Importance::streaming, Importance::random}) {
    victims.clear();
    choose_demotions({importance, 0.5, 4, 1}, tokens.scores, tokens.arrivals, 399, victims, scratch);
    EXPECT_EQ(victims.size(), 1u);
    EXPECT_EQ(scratch.capacity(), 0u);
  }
}

TEST(PolicyTest, RandomIsASampleThatTheSeedChooses) {
  Tokens tokens{std::vector<float>(1000, 0.0f), std::vector<uint32_t>(1000)};
  std::iota(tokens.arrivals.begin(), tokens.arrivals.end(), 0u);
  const auto first = arrivals_of(tokens, victims_of({Importance::random, 0.5, 0, 1}, tokens, 500));
  const auto second = arrivals_of(tokens, victims_of({Importance::random, 0.5, 0, 2}, tokens, 500));
  EXPECT_NE(first, second);
  // Half of the victims from each half of the tokens: 250 with a standard deviation of sqrt(1000)/4 = 7.9; 6 of them.
  const auto n_early = std::count_if(first.begin(), first.end(), [](uint32_t arrival) { return arrival < 500; });
  EXPECT_NEAR(double(n_early), 250.0, 48.0);
}

TEST(BudgetTest, IsTheFloorInDecimalArithmetic) {
  for (uint64_t percent = 0; percent <= 100; ++percent)
    for (const uint64_t n : {0u, 1u, 9u, 10u, 11u, 99u, 100u, 101u, 1000u, 4096u, 131072u, 99999999u})
      EXPECT_EQ(hi_places(double(percent) / 100.0, n), percent * n / 100) << percent << " % of " << n;
  for (uint64_t permille = 0; permille <= 1000; ++permille)
    for (uint64_t n = 0; n < 200; ++n) ASSERT_EQ(hi_places(double(permille) / 1000.0, n), permille * n / 1000);
  EXPECT_EQ(hi_places(1.0 / 3.0, 3), 1u);
  EXPECT_EQ(hi_places(1.0, UINT32_MAX), UINT32_MAX);
}

}  // namespace
}  // namespace mikv::policy
