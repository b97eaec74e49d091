// RoPE as it is read off a graph: pairs and angles, whatever the node's parameters.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "graph/rope_probe.hpp"

namespace mikv::llama::rope_probe_test {
namespace {

class RopeProbe : public testing::Test {
 protected:
  void SetUp() override { context_ = ggml_init({memory_.size(), memory_.data(), false}); }
  void TearDown() override { ggml_free(context_); }

  ggml_tensor* keys(int mode, ggml_tensor* factors, float scale, float extrapolation) {
    ggml_tensor* k = ggml_new_tensor_3d(context_, GGML_TYPE_F32, 48, 2, 5);
    ggml_tensor* positions = ggml_new_tensor_1d(context_, GGML_TYPE_I32, 5);
    return ggml_rope_ext(context_, k, positions, factors, 32, mode, 4096, 10000.0f, scale, extrapolation, 1.0f, 32.0f,
                         1.0f);
  }

  std::vector<char> memory_ = std::vector<char>(1 << 20);
  ggml_context* context_ = nullptr;
};

TEST_F(RopeProbe, AnglesAndPairs) {
  for (const bool adjacent : {true, false}) {
    ggml_tensor* turned = keys(adjacent ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX, nullptr, 1.0f, 0.0f);
    const Rope rope = rope_of(ggml_reshape_2d(context_, turned, 96, 5));
    EXPECT_EQ(rope.adjacent, adjacent);
    ASSERT_EQ(rope.angles.size(), 16u);
    for (int i = 0; i < 16; ++i) EXPECT_NEAR(rope.angles[i], std::pow(10000.0, -2.0 * i / 32), 1e-6) << i;
  }
}

TEST_F(RopeProbe, ScalingAndFactors) {
  ggml_tensor* factors = ggml_new_tensor_1d(context_, GGML_TYPE_F32, 16);
  for (int i = 0; i < 16; ++i) ggml_get_data_f32(factors)[i] = 1.0f + float(i);
  const Rope rope = rope_of(keys(GGML_ROPE_TYPE_NEOX, factors, 0.25f, 0.0f));
  ASSERT_EQ(rope.angles.size(), 16u);
  for (int i = 0; i < 16; ++i)
    EXPECT_NEAR(rope.angles[i], 0.25 * std::pow(10000.0, -2.0 * i / 32) / (1 + i), 1e-6) << i;
  // YaRN: fast pairs turn as without scaling, slow ones are scaled.
  const Rope yarn = rope_of(keys(GGML_ROPE_TYPE_NEOX, nullptr, 0.25f, 1.0f));
  EXPECT_NEAR(yarn.angles.front(), 1.0, 1e-5);
  EXPECT_NEAR(yarn.angles.back(), 0.25 * std::pow(10000.0, -30.0 / 32), 1e-6);
}

TEST_F(RopeProbe, KeysWithoutItHaveNone) {
  ggml_tensor* k = ggml_new_tensor_2d(context_, GGML_TYPE_F32, 48, 5);
  EXPECT_TRUE(rope_of(k).angles.empty());
  EXPECT_TRUE(rope_of(ggml_scale(context_, keys(GGML_ROPE_TYPE_NEOX, nullptr, 1.0f, 0.0f), 2.0f)).angles.empty());
}

}  // namespace
}  // namespace mikv::llama::rope_probe_test
