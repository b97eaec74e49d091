// A generation step allocates nothing, but for those in which a tier grows.
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "test_cache.hpp"

namespace {
std::atomic<uint64_t> n_allocations = 0;
}  // namespace

// The C library's allocator under the names that everything calls, operator new included.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t n, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) noexcept {
  ++n_allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t n, size_t bytes) noexcept {
  ++n_allocations;
  return __libc_calloc(n, bytes);
}
void* realloc(void* memory, size_t bytes) noexcept {
  ++n_allocations;
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  ++n_allocations;
  return __libc_memalign(alignment, bytes);
}
}

namespace mikv::test::allocation_test {
namespace {

constexpr LayerShape kShape{4, 2, 64, 64};
constexpr uint32_t kPrompt = 1024, kWarmUp = 128, kSteps = 128;

class AllocationTest : public testing::TestWithParam<const char*> {};

TEST_P(AllocationTest, SteadyStepsAllocateNothing) {
  Random random(90);
  auto layer = make_layer(kShape, GetParam());
  put(*layer, 0, cell_range(0, kPrompt), Tokens(kShape, kPrompt, random));
  Workspace workspace(1);
  const Tokens tokens(kShape, 1, random);
  std::vector<float> q(size_t{kShape.n_heads} * kShape.head_dim_k, 0.5f), out(q.size());
  LayerAttendArgs args;
  args.q = q.data();
  args.out = out.data();
  args.q_token_stride = args.out_token_stride = q.size();
  args.q_head_stride = args.out_head_stride = kShape.head_dim_k;
  args.n_tokens = 1;
  args.scale = 0.125f;
  args.commit = true;
  ASSERT_TRUE(layer->attend(args, workspace).ok());

  const size_t stride = size_t{kShape.n_kv_heads} * kShape.head_dim_k;
  const std::vector<float> k(stride, 0.25f), v(stride, 0.75f);
  uint32_t n_quiet = 0;
  for (uint32_t step = 0; step < kWarmUp + kSteps; ++step) {
    const Cell cell = kPrompt + step;
    const uint64_t before = n_allocations;
    const bool done = layer->put(0, std::span(&cell, 1), k.data(), stride, v.data(), stride).ok() &&
                      layer->attend(args, workspace).ok();
    const uint64_t made = n_allocations - before;
    ASSERT_TRUE(done);
    if (step >= kWarmUp && made == 0) ++n_quiet;
  }
  // Two heads with two tiers, the scores' kept logits, and the bitmap of cells grow by a sixteenth of 1,024 now and
  // then.
  EXPECT_GE(n_quiet, kSteps - 12) << "of " << kSteps << " steps";
}

TEST(AllocationCounter, Counts) {
  const uint64_t before = n_allocations;
  std::vector<int> values(1000);
  EXPECT_GT(n_allocations.load(), before) << values.size();
}

INSTANTIATE_TEST_SUITE_P(Specs, AllocationTest,
                         testing::Values("full", "mikv", "mikv-max", "mikv-paper", "h2o", "scissorhands", "fastgen",
                                         "llm-qat4", "llm-int8", "rtn4", "kivi2"),
                         [](const auto& spec) {
                           std::string name = spec.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace mikv::test::allocation_test
