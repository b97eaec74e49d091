// Estimates against caches that are really filled.
#include <gtest/gtest.h>

#include <stdexcept>

#include "mikv/estimate.hpp"

namespace mikv {
namespace {

constexpr LayerShape kShape{4, 2, 64, 64};

Spec spec_of(const char* text) { return Spec::parse(text).value(); }

TEST(Estimate, ALayerThatIsMeasuredWholeIsCounted) {
  for (const char* spec : {"full", "mikv", "mikv:prefill=streaming", "h2o", "kivi2"}) {
    const auto measured = measure_layer(kShape, spec_of(spec), 600, 600);
    ASSERT_TRUE(measured.ok()) << measured.message();
    EXPECT_EQ(measured.value().held.n_elements, 601u * 2 * 128) << spec;
    EXPECT_GE(measured.value().peak_bytes, measured.value().held.total()) << spec;
    const LayerLoad layer{kShape, 600};
    const auto estimated = estimate_cache({&layer, 1}, spec_of(spec), 600);
    ASSERT_TRUE(estimated.ok()) << estimated.message();
    EXPECT_EQ(estimated.value().held, double(measured.value().held.total())) << spec;
    EXPECT_EQ(estimated.value().prompt, double(measured.value().peak_bytes)) << spec;
  }
}

TEST(Estimate, BeyondWhatIsMeasuredBytesGrowInProportion) {
  for (const char* spec : {"full", "mikv", "mikv:prefill=streaming", "kivi2"}) {
    const LayerLoad layer{kShape, 6000};
    const auto quick = estimate_cache({&layer, 1}, spec_of(spec), 2000),
               whole = estimate_cache({&layer, 1}, spec_of(spec), 6000);
    ASSERT_TRUE(quick.ok() && whole.ok());
    // Storage grows in steps of blocks: 2,000 tokens may end anywhere within one.
    EXPECT_NEAR(quick.value().held / whole.value().held, 1.0, 0.05) << spec;
    EXPECT_NEAR(quick.value().prompt / whole.value().prompt, 1.0, 0.1) << spec;
  }
}

TEST(Estimate, LayersAddUp) {
  const LayerLoad layers[] = {{kShape, 1000}, {kShape, 300}, {{8, 1, 128, 128}, 1000}, {kShape, 1000}};
  CacheBytes sum;
  int n_steps = 0;
  for (const LayerLoad& layer : layers) {
    const auto one = estimate_cache({&layer, 1}, spec_of("mikv"), 500);
    ASSERT_TRUE(one.ok());
    sum.held += one.value().held;
    sum.prompt += one.value().prompt;
  }
  const auto all = estimate_cache(layers, spec_of("mikv"), 500, [&] { ++n_steps; });
  ASSERT_TRUE(all.ok());
  EXPECT_DOUBLE_EQ(all.value().held, sum.held);
  EXPECT_DOUBLE_EQ(all.value().prompt, sum.prompt);
  EXPECT_EQ(n_steps, 5) << "equal layers are measured once: 500 and 250 tokens of two, 300 of one";
}

TEST(Estimate, RefusesWhatNoCacheTakes) {
  EXPECT_FALSE(measure_layer({4, 3, 64, 64}, spec_of("mikv"), 10, 10).ok());
  const LayerLoad layer{kShape, 100};
  EXPECT_FALSE(estimate_cache({&layer, 1}, spec_of("mikv"), 1).ok());
  EXPECT_EQ(estimate_cache({}, spec_of("mikv"), 100).value().held, 0.0);
}

TEST(Estimate, StopsWhenTheCallerThrows) {
  const auto stop = [] { throw std::runtime_error("stop"); };
  EXPECT_THROW((void)measure_layer(kShape, spec_of("mikv"), 100, 100, stop), std::runtime_error);
}

}  // namespace
}  // namespace mikv
