// Prints the seed that a run can be repeated with: MIKV_TEST_SEED=<seed> mikv_tests.
#include <gtest/gtest.h>

#include <malloc.h>

#include <cstdio>

#include "test_data.hpp"

int main(int argc, char** argv) {
  // Fresh memory is filled with 0xfe: as halves and as floats, huge numbers or NaN, which no result may depend on.
  mallopt(M_PERTURB, 0x01);
  testing::InitGoogleTest(&argc, argv);
  if (!GTEST_FLAG_GET(list_tests)) {
    std::printf("MIKV_TEST_SEED=%llu\n", static_cast<unsigned long long>(mikv::test::seed()));
  }
  return RUN_ALL_TESTS();
}
