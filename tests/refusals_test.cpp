// A request that is refused counts once, however its program tries again.
#include <gtest/gtest.h>

#include "context/refusals.hpp"

namespace mikv::context {
namespace {

TEST(Refusals, CountsARequestOnceThatIsTriedWithLess) {
  Refusals refusals;
  for (const size_t n : {2048u, 1024u, 512u, 256u, 1u}) refusals.refused(n);
  EXPECT_EQ(refusals.n_requests(), 1u);
  for (const size_t n : {2048u, 1u}) refusals.refused(n);
  EXPECT_EQ(refusals.n_requests(), 2u);
  EXPECT_EQ(refusals.n_requests() + refusals.n_undecided(), 2u);
}

TEST(Refusals, DoesNotCountWhatFitsInTheEnd) {
  Refusals refusals;
  refusals.refused(2048);
  refusals.refused(1024);
  refusals.fitted(512);
  refusals.fitted(2048);
  EXPECT_EQ(refusals.n_requests() + refusals.n_undecided(), 0u);
}

// Most of a prompt fits, its end does not: tried in part again, it is one request.
TEST(Refusals, CountsAPromptOnceOfWhichSomeFits) {
  Refusals refusals;
  refusals.refused(2048);
  refusals.fitted(1024);
  refusals.refused(1024);
  refusals.fitted(512);
  for (size_t n = 512; n > 0; n /= 2) refusals.refused(n);
  EXPECT_EQ(refusals.n_requests() + refusals.n_undecided(), 1u);
}

TEST(Refusals, CountsWhatIsNotTriedAgain) {
  Refusals refusals;
  refusals.refused(100);
  EXPECT_EQ(refusals.n_requests(), 0u);  // it may be tried with less
  EXPECT_EQ(refusals.n_requests() + refusals.n_undecided(), 1u);
  refusals.fitted(200);
  EXPECT_EQ(refusals.n_requests(), 1u);
  refusals.refused(100);
  refusals.refused(300);
  EXPECT_EQ(refusals.n_requests(), 2u);
  EXPECT_EQ(refusals.n_requests() + refusals.n_undecided(), 3u);
}

}  // namespace
}  // namespace mikv::context
