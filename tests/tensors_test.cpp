// attend_tensors(): tensors of three types and any strides do as rows of floats do.
#include "mikv/tensors.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "codec/fp16.hpp"
#include "mikv/mikv.h"

namespace mikv::test::tensors_test {
namespace {

constexpr LayerShape kShape{4, 2, 16, 16};
constexpr uint32_t kTokens = 40;
const std::vector<SequenceId> kSequences{0, 1};

std::unique_ptr<Context> context(bool unified = false) {
  ContextOptions options;
  options.spec = Spec::parse("mikv").value();
  options.n_sequences = 2;
  options.n_cells = 512;
  options.unified = unified;
  auto made = Context::create(std::move(options)).value();
  EXPECT_TRUE(made->add_layer(0, kShape).ok());
  return made;
}

Batch batch(Position first) {
  Batch batch;
  for (const SequenceId s : kSequences)
    for (uint32_t t = 0; t < kTokens; ++t) batch.tokens.push_back({s, t + 1 == kTokens, first + Position(t)});
  return batch;
}

float rounded(float x, TensorType type) {
  if (type == TensorType::f16) return codec::f16_to_f32(codec::f32_to_f16(x));
  if (type == TensorType::bf16) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u);
  }
  return x;
}

// [sequences][heads][tokens][channels], as Transformers has it, with a gap after each row.
struct Data {
  Data(uint32_t heads, TensorType of, uint32_t seed) : n_heads(heads), type(of) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : values) x = rounded(normal(random), type);
    for (size_t i = 0; i < values.size(); ++i) {
      halves[i] =
          type == TensorType::f16 ? codec::f32_to_f16(values[i]) : uint16_t(std::bit_cast<uint32_t>(values[i]) >> 16);
    }
  }
  static constexpr size_t kRow = 19;
  Tensor tensor() {
    void* data = type == TensorType::f32 ? static_cast<void*>(values.data()) : halves.data();
    return {data, type, n_heads * kTokens * kRow, kRow, kTokens * kRow};
  }
  size_t place(uint32_t s, uint32_t t, uint32_t h) const { return ((s * n_heads + h) * kTokens + t) * kRow; }
  float value(size_t place) const {
    if (type == TensorType::f32) return values[place];
    return type == TensorType::f16 ? codec::f16_to_f32(halves[place])
                                   : std::bit_cast<float>(uint32_t(halves[place]) << 16);
  }
  /// Rows of floats, [sequences][tokens][heads][channels].
  std::vector<float> dense() const {
    std::vector<float> rows;
    for (uint32_t s = 0; s < 2; ++s)
      for (uint32_t t = 0; t < kTokens; ++t)
        for (uint32_t h = 0; h < n_heads; ++h)
          for (uint32_t c = 0; c < 16; ++c) rows.push_back(value(place(s, t, h) + c));
    return rows;
  }

  uint32_t n_heads;
  TensorType type;
  std::vector<float> values = std::vector<float>(2 * n_heads * kTokens * kRow);
  std::vector<uint16_t> halves = std::vector<uint16_t>(values.size());
};

struct Step {
  Step(TensorType type, uint32_t seed)
      : q(4, type, seed), k(2, type, seed + 1), v(2, type, seed + 2), out(4, type, seed + 3) {}
  TensorCall call() {
    return {.sequences = kSequences,
            .n_tokens = kTokens,
            .q = q.tensor(),
            .k = k.tensor(),
            .v = v.tensor(),
            .out = out.tensor(),
            .scale = 0.25f};
  }
  std::vector<float> by_rows(Context& to) const {
    const std::vector<float> q_rows = q.dense(), k_rows = k.dense(), v_rows = v.dense();
    std::vector<float> rows(q_rows.size());
    EXPECT_TRUE(to.store(0, {}, k_rows.data(), 32, v_rows.data(), 32, 2 * kTokens).ok());
    std::vector<AttendArgs> calls(2);
    for (uint32_t s = 0; s < 2; ++s) {
      calls[s].q = q_rows.data() + s * kTokens * 64;
      calls[s].out = rows.data() + s * kTokens * 64;
      calls[s].q_token_stride = calls[s].out_token_stride = 64;
      calls[s].q_head_stride = calls[s].out_head_stride = 16;
      calls[s].n_tokens = kTokens;
      calls[s].stream = s;
      calls[s].scale = 0.25f;
    }
    EXPECT_TRUE(to.attend_all(0, calls).ok());
    return rows;
  }
  Data q, k, v, out;
};

class TensorsTest : public testing::TestWithParam<TensorType> {};
INSTANTIATE_TEST_SUITE_P(Types, TensorsTest, testing::Values(TensorType::f32, TensorType::f16, TensorType::bf16));

TEST_P(TensorsTest, DoAsRowsOfFloatsDo) {
  const auto ours = context(), theirs = context();
  for (uint32_t i = 0; i < 8; ++i) {  // compressed on the way
    Step step(GetParam(), 10 * i);
    ASSERT_TRUE(ours->begin_step(batch(Position(i * kTokens))).ok());
    ASSERT_TRUE(theirs->begin_step(batch(Position(i * kTokens))).ok());
    ASSERT_TRUE(attend_tensors(*ours, 0, step.call()).ok());
    const std::vector<float> wanted = step.by_rows(*theirs);
    const std::vector<float> said = step.out.dense();
    for (size_t j = 0; j < wanted.size(); ++j) ASSERT_EQ(said[j], rounded(wanted[j], GetParam())) << i << " " << j;
    ASSERT_TRUE(ours->end_step().ok());
    ASSERT_TRUE(theirs->end_step().ok());
  }
  EXPECT_EQ(ours->memory_usage().total(), theirs->memory_usage().total());
}

TEST_P(TensorsTest, WhatIsNotFiniteIsRefusedAndNothingIsKept) {
  const auto cache = context();
  for (const bool key : {true, false}) {
    Step step(GetParam(), 3);
    Data& data = key ? step.k : step.v;
    const size_t last = data.place(1, kTokens - 1, 1) + 15;
    data.values[last] = key ? NAN : -INFINITY;
    data.halves[last] = GetParam() == TensorType::f16 ? (key ? 0x7e00 : 0xfc00) : (key ? 0x7fc0 : 0xff80);
    ASSERT_TRUE(cache->begin_step(batch(0)).ok());
    const Status status = attend_tensors(*cache, 0, step.call());
    EXPECT_EQ(status.code(), ErrorCode::invalid_argument);
    EXPECT_NE(status.message().find("not finite"), std::string::npos) << status.message();
    (void)cache->end_step(false);
    EXPECT_EQ(cache->last_position(0), -1);
  }
  Step step(GetParam(), 3);
  ASSERT_TRUE(cache->begin_step(batch(0)).ok());
  EXPECT_TRUE(attend_tensors(*cache, 0, step.call()).ok());
  EXPECT_TRUE(cache->end_step().ok());
}

TEST(TensorsTest, MistakesAreRefused) {
  Step step(TensorType::f32, 1);
  const auto shared = context(true);
  EXPECT_EQ(attend_tensors(*shared, 0, step.call()).code(), ErrorCode::unsupported);
  const auto cache = context();
  ASSERT_TRUE(cache->begin_step(batch(0)).ok());
  EXPECT_FALSE(attend_tensors(*cache, 7, step.call()));
  TensorCall wrong = step.call();
  wrong.v.data = nullptr;
  EXPECT_FALSE(attend_tensors(*cache, 0, wrong));
  wrong = step.call();
  wrong.out.head_stride = 8;
  EXPECT_FALSE(attend_tensors(*cache, 0, wrong));
  wrong = step.call();
  wrong.k.type = TensorType(9);
  EXPECT_FALSE(attend_tensors(*cache, 0, wrong));
  wrong = step.call();
  wrong.n_tokens = UINT32_MAX;
  EXPECT_FALSE(attend_tensors(*cache, 0, wrong));
  wrong.n_tokens = kTokens + 1;
  EXPECT_FALSE(attend_tensors(*cache, 0, wrong));
}

TEST(TensorsTest, TheSameInC) {
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.n_cells = 512;
  mikv_context* cache = nullptr;
  ASSERT_EQ(mikv_context_create(&options, &cache), MIKV_OK);
  const mikv_layer_shape shape{4, 2, 16, 16};
  ASSERT_EQ(mikv_context_add_layer(cache, 0, &shape, 0), MIKV_OK);
  Step step(TensorType::bf16, 5);
  mikv_tensor_call call;
  mikv_tensor_call_init(&call);
  const auto tensor = [](Data& data) {
    const Tensor of = data.tensor();
    return mikv_tensor{of.data, MIKV_BF16, of.sequence_stride, of.token_stride, of.head_stride};
  };
  const int32_t sequence = 0;
  call.sequences = &sequence;
  call.n_sequences = 1;
  call.n_tokens = 1;
  call.q = tensor(step.q);
  call.k = tensor(step.k);
  call.v = tensor(step.v);
  call.out = tensor(step.out);
  const mikv_token token{0, 0, 1};
  ASSERT_EQ(mikv_context_begin_step(cache, &token, 1, nullptr, 0), MIKV_OK);
  EXPECT_EQ(mikv_context_attend_tensors(cache, 0, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_attend_tensors(cache, 0, &call), MIKV_OK) << mikv_last_error_message();
  EXPECT_EQ(mikv_context_end_step(cache, 1), MIKV_OK);
  // One token attends to itself: its value comes back.
  for (uint32_t c = 0; c < 16; ++c) {
    EXPECT_EQ(step.out.value(step.out.place(0, 0, 3) + c), step.v.value(step.v.place(0, 0, 1) + c));
  }
  mikv_context_free(cache);
}

}  // namespace
}  // namespace mikv::test::tensors_test
