// attend() against the formula, on every SIMD target of the machine: lengths around every boundary, groups, head
// dimensions, formats, mixed tiers, prompts, threads, segments. Masks and other modifiers are in
// attention_masks_test.cpp.
#include <gtest/gtest.h>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "test_attention.hpp"

namespace mikv::test::attention_test {
namespace {

constexpr const char* kSpecs[] = {"full",
                                  "rtn8",
                                  "rtn4",
                                  "rtn3",
                                  "rtn2",
                                  "h2o",
                                  "mikv-paper",
                                  "mikv",
                                  "mikv-hq",
                                  "mikv-max",
                                  "mikv:importance=full",
                                  "mikv:importance=full,hi=int4,outlier=hadamard",
                                  "mikv:keep=0.5,hi=f16,lo=int2,outlier=center",
                                  "mikv:keep=0.3,hi=int4,lo=int8,outlier=balancer",
                                  "mikv-paper-int2",
                                  "llm-qat4",
                                  "llm-qat8",
                                  "llm-int8",
                                  "rtn4:outlier=f16",
                                  "mikv-paper-int8:keep=0.3,group=head,outlier=f16",
                                  "mikv-paper-int8:quantiser=symmetric",
                                  "kivi2:group=auto,residual=20",
                                  "rtn4:keys=channel",
                                  "mikv:keep=0.4,lo=evict,outlier=center+hadamard",
                                  "mikv:lo=int3",
                                  "rtn4:lo=int5",
                                  "mikv:keep=0.3,hi=int5,lo=int5,outlier=center",
                                  "mikv:lo=int2,outlier=balancer+center+hadamard",
                                  "mikv:keep=0.3,hi=f16,bits=1",
                                  "mikv:keep=0.3,hi=int4,bits=5"};

bool has_outlier_tiles(const char* spec) { return Spec::parse(spec).value().outlier_channels; }

/// n committed tokens in segment 0, then n_staged more that are not.
std::unique_ptr<LayerCache> filled(const LayerShape& shape, const char* spec, size_t n, size_t n_staged,
                                   Random& random) {
  auto layer = make_layer(shape, spec);
  if (n > 0) {
    put(*layer, 0, cell_range(0, n), Tokens(shape, n, random));
    Request prompt(shape, 2, random);
    prompt.record = true;
    run(*layer, prompt);
    commit(*layer, 0);
  }
  if (n_staged > 0) put(*layer, 0, cell_range(Cell(n), n_staged), Tokens(shape, n_staged, random));
  return layer;
}

/// On every target, on the given numbers of threads, with and without recording.
void check(LayerCache& layer, Request& request, const std::vector<SegmentId>& segments,
           std::vector<uint32_t> n_threads = {1}) {
  const Expected expected = expect(layer, segments, request);
  for_each_target([&](const std::string& target) {
    for (const uint32_t threads : n_threads) {
      request.record = threads % 2 == 0;
      ASSERT_TRUE(matches(run(layer, request, threads), expected)) << target << ", " << threads << " threads";
    }
  });
}

TEST(AttentionTest, ForcedTargetIsTheOneThatRuns) {
  const std::string before = simd_target();
  const std::vector<std::string> targets = simd_targets();
  ASSERT_FALSE(targets.empty());
  for (const std::string& target : targets) {
    ASSERT_TRUE(set_simd_target(target).ok());
    EXPECT_EQ(simd_target(), target);
  }
  const Status refused = set_simd_target("mmx");
  EXPECT_FALSE(refused.ok());
  EXPECT_NE(refused.message().find("mmx"), std::string::npos);
  EXPECT_NE(refused.message().find(targets[0]), std::string::npos) << "it must name those that would do";
  EXPECT_EQ(simd_target(), targets.back()) << "a refusal changes nothing";
  ASSERT_TRUE(set_simd_target(before).ok());
}

// A build without a target would go unnoticed: all tests would pass on the next best one.
TEST(AttentionTest, TargetsOfTheMachineAreBuilt) {
  const std::vector<std::string> targets = simd_targets();
  const auto has = [&](const char* name) { return std::find(targets.begin(), targets.end(), name) != targets.end(); };
#if defined(__aarch64__)
  EXPECT_TRUE(has("neon"));
#if defined(__linux__)
  EXPECT_EQ(has("neondot"), (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0);
#endif
#elif defined(__x86_64__)
  EXPECT_TRUE(has("scalar"));
#if !defined(__SANITIZE_THREAD__)  // leaves this one out, to be built in reasonable time
  EXPECT_EQ(has("avx2"), bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
#endif
  EXPECT_EQ(has("avxvnni"), has("avx2") && __builtin_cpu_supports("avxvnni"));
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  EXPECT_EQ(has("avx512"), avx512);
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                    __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
                    __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("vpclmulqdq") &&
                    __builtin_cpu_supports("gfni");
  EXPECT_EQ(has("avx512vnni"), vnni);
#endif
}

class AttentionSpecTest : public testing::TestWithParam<const char*> {};

TEST_P(AttentionSpecTest, LengthsAroundBlockBoundaries) {
  Random random(30);
  const LayerShape shape{4, 2, 64, 64};
  for (const size_t n : {0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 300, 1000}) {
    for (const size_t n_staged : {0, 1, 18}) {
      SCOPED_TRACE(std::to_string(n) + " cells and " + std::to_string(n_staged) + " staged");
      const auto layer = filled(shape, GetParam(), n, n_staged, random);
      Request request(shape, 1, random);
      check(*layer, request, {0});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionSpecTest, GroupsOfQueryHeads) {
  Random random(31);
  for (uint32_t group = 1; group <= 16; ++group) {
    SCOPED_TRACE("group " + std::to_string(group));
    const LayerShape shape{2 * group, 2, 32, 48};
    const auto layer = filled(shape, GetParam(), 70, 3, random);
    for (const uint32_t n_tokens : {1u, 2u, 3u}) {
      Request request(shape, n_tokens, random);
      check(*layer, request, {0});
    }
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionSpecTest, HeadDimensions) {
  Random random(32);
  for (const uint32_t dim_k : {8u, 24u, 40u, 64u, 72u, 80u, 96u, 128u, 256u, 512u}) {
    for (const uint32_t dim_v : {dim_k, 8u, 64u, 104u}) {
      SCOPED_TRACE("dims " + std::to_string(dim_k) + " and " + std::to_string(dim_v));
      const LayerShape shape{3, 1, dim_k, dim_v};
      if (has_outlier_tiles(GetParam()) && std::min(dim_k, dim_v) <= 16) {
        EXPECT_EQ(LayerCache::create(shape, Spec::parse(GetParam()).value()).error().code, ErrorCode::unsupported);
        continue;
      }
      const auto layer = filled(shape, GetParam(), 50, 2, random);
      for (const uint32_t n_tokens : {1u, 9u}) {  // the second has enough rows to decode a tile once for all
        Request request(shape, n_tokens, random, 5);
        check(*layer, request, {0});
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionSpecTest, Prompts) {
  Random random(33);
  const LayerShape shape{6, 2, 32, 32};
  for (uint32_t n_tokens = 1; n_tokens <= 70; n_tokens += n_tokens < 20 ? 1 : 7) {
    SCOPED_TRACE(std::to_string(n_tokens) + " query tokens");
    const auto layer = filled(shape, GetParam(), 40, n_tokens, random);
    Request request(shape, n_tokens, random, n_tokens % 3);
    request.set_causal(Mask::Type::f32, 40 + n_tokens, 40);
    check(*layer, request, {0}, {1, 2});
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionSpecTest, Threads) {
  Random random(34);
  const LayerShape shape{6, 2, 64, 64};
  for (const size_t n : {1, 20, 64, 130, 1100}) {
    for (const uint32_t n_tokens : {1u, 2u, 33u}) {
      SCOPED_TRACE(std::to_string(n) + " cells, " + std::to_string(n_tokens) + " query tokens");
      const auto layer = filled(shape, GetParam(), n, 0, random);
      Request request(shape, n_tokens, random);
      check(*layer, request, {0}, {1, 2, 3, 4});
      if (HasFatalFailure()) return;
    }
  }
}

// Contexts long enough that a generation step is cut into several parts for the threads, which are merged.
TEST_P(AttentionSpecTest, LongContexts) {
  Random random(39);
  const LayerShape shape = has_outlier_tiles(GetParam()) ? LayerShape{3, 1, 32, 24} : LayerShape{3, 1, 16, 8};
  for (const size_t n : {4095, 4200, 9000}) {
    SCOPED_TRACE(std::to_string(n) + " cells");
    const auto layer = filled(shape, GetParam(), n, 30, random);
    Request request(shape, 1, random);
    request.set_mask(Mask::Type::f32, uint32_t(n) + 30, [&](uint32_t, uint32_t cell) {
      return cell / 2500 == 1 || cell % 11 == 3 ? -kInfinity : 0.0f;  // whole parts that see nothing
    });
    check(*layer, request, {0}, {1, 2, 4});
    if (HasFatalFailure()) return;
  }
}

// Tokens that weigh little beside earlier ones, for some heads of the group and not for others: those are rounded more
// coarsely.
TEST_P(AttentionSpecTest, SmallWeights) {
  Random random(36);
  const LayerShape shape{7, 1, 64, 64};
  const auto layer = filled(shape, GetParam(), 1500, 0, random);
  Request request(shape, 1, random);
  request.set_mask(Mask::Type::f32, 1500, [](uint32_t, Cell cell) { return cell < 20 ? 0.0f : -8.0f; });
  for (uint32_t n_small = 0; n_small <= 7; ++n_small) {
    SCOPED_TRACE(std::to_string(n_small) + " heads");
    request.slopes.assign(7, 0.0f);
    for (uint32_t i = 0; i < n_small; ++i) request.slopes[3 * i % 7] = 1.0f;
    check(*layer, request, {0});
    if (HasFatalFailure()) return;
  }
}

// Where one token draws nearly all attention, the weights of most others are rounded to 0. That must not cost what they
// have in common: a mean of codes that went with them was 1 % of the output, in one channel.
TEST(AttentionTest, WeightsBesideASinkLeaveNoBias) {
  Random random(41);
  const LayerShape shape{6, 1, 128, 128};
  for (const char* spec : {"mikv", "mikv-max", "mikv:lo=int3"}) {
    SCOPED_TRACE(spec);
    const auto layer = filled(shape, spec, 2000, 0, random);
    Request request(shape, 1, random);
    request.set_mask(Mask::Type::f32, 2000, [](uint32_t, Cell cell) { return cell < 1 ? 0.0f : -11.0f; });
    const Expected expected = expect(*layer, {0}, request);
    for_each_target([&](const std::string& target) {
      const std::vector<float> out = run(*layer, request);
      double worst = 0.0;
      for (size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(double(out[i]) - expected.out[i]));
      EXPECT_LT(worst, 2e-3) << target << ": values are of variance 1";
    });
  }
}

// Scales of groups of two channels take more than codes of a byte save.
TEST(AttentionTest, SmallGroupsDoNotWaitInBytes) {
  Random random(43);
  const LayerShape shape{2, 2, 64, 64};
  for (const char* spec : {"rtn8:group=1", "rtn8:group=2", "rtn4:group=2,outlier=f16"}) {
    const auto layer = make_layer(shape, spec);
    put(*layer, 0, cell_range(0, 64), Tokens(shape, 64, random));
    const uint64_t before = layer->memory_usage().staged;
    layer->stage_in_bytes(true);
    EXPECT_EQ(layer->memory_usage().staged, before) << spec;
    Request request(shape, 1, random);
    check(*layer, request, {0});
  }
}

TEST(AttentionTest, OutlierChannelsOfASpecThatHasNoUniformCodesAreRefused) {
  for (const char* text : {"mikv", "h2o", "full"}) {
    Spec spec = Spec::parse(text).value();
    spec.outlier_channels = true;
    EXPECT_EQ(LayerCache::create({2, 2, 64, 64}, spec).error().code, ErrorCode::unsupported) << text;
  }
}

// Staged tokens of bytes have coordinates of their own, and so have those that come after they got them.
TEST_P(AttentionSpecTest, StagedInBytes) {
  Random random(42);
  const LayerShape shape{6, 2, 64, 40};
  auto layer = make_layer(shape, GetParam());
  Tokens tokens(shape, 110, random);
  for (size_t t = 0; t < 110; ++t)
    for (uint32_t c = 0; c < 64; ++c) tokens.key(t, 1)[c] += 30.0f * float(c % 3 == 0);
  const auto put_some = [&](uint32_t first, uint32_t n) {
    ASSERT_TRUE(layer
                    ->put(0, cell_range(first, n), tokens.k.data() + first * tokens.k_stride, tokens.k_stride,
                          tokens.v.data() + first * tokens.v_stride, tokens.v_stride)
                    .ok());
  };
  const bool quantised =
      format_bits(layer->spec().hi) < 16 || (layer->spec().lo != Format::evict && !layer->spec().uncompressed());
  const auto bytes_per_token = [&] { return layer->memory_usage().staged / layer->memory_usage().n_staged_tokens; };
  put_some(0, 10);
  const bool waits_in_bytes = quantised && !has_outlier_tiles(GetParam());  // outlier channels are not known yet
  const uint64_t of_f16 = bytes_per_token(), in_bytes = waits_in_bytes ? of_f16 / 2 : of_f16;
  layer->stage_in_bytes(true);
  EXPECT_EQ(bytes_per_token(), of_f16) << "no centre can be told from 10 tokens";
  put_some(10, 61);
  EXPECT_EQ(bytes_per_token(), of_f16);
  layer->stage_in_bytes(false);
  layer->stage_in_bytes(true);
  EXPECT_EQ(bytes_per_token(), in_bytes);
  layer->stage_in_bytes(false);
  put_some(71, 39);
  EXPECT_EQ(bytes_per_token(), in_bytes);
  for (uint32_t head = 0; head < 2; ++head) {
    for (const StoredToken& token : layer->dump(0, head)) {
      ASSERT_EQ(token.tier, TokenTier::staged);
      // 255 steps over less than 12 deviations, to the nearest; the group's offset is a half.
      for (uint32_t c = 0; c < 64; ++c)
        EXPECT_NEAR(token.k[c], tokens.key(token.cell, head)[c], 0.03) << "a centre of 30 takes no steps";
      for (uint32_t c = 0; c < 40; ++c) EXPECT_NEAR(token.v[c], tokens.value(token.cell, head)[c], 0.03);
    }
  }
  for (const uint32_t n_tokens : {1u, 9u, 39u}) {
    Request request(shape, n_tokens, random);
    request.set_causal(Mask::Type::f32, 110, 110 - n_tokens);
    request.record = true;
    check(*layer, request, {0}, {1, 2});
    if (HasFatalFailure()) return;
  }
  commit(*layer, 0);
  put(*layer, 0, cell_range(110, 3), Tokens(shape, 3, random));  // halves, if anything was compressed
  Request last(shape, 1, random);
  check(*layer, last, {0});
}

TEST_P(AttentionSpecTest, SegmentsOfDifferentCoordinates) {
  Random random(35);
  const LayerShape shape{4, 2, 64, 64};
  auto layer = make_layer(shape, GetParam());
  std::vector<SegmentId> all;
  for (const SegmentId segment : {0u, 2u, 5u, 6u}) {  // 6 is too short to be frozen where a segment is needed
    all.push_back(segment);
    const size_t n = segment == 6 ? 7 : 40 + 13 * segment;
    Tokens tokens(shape, n, random);
    for (size_t t = 0; t < n; ++t)  // another centre in each segment, and another spread
      for (uint32_t head = 0; head < 2; ++head)
        for (uint32_t c = 0; c < 64; ++c)
          tokens.key(t, head)[c] = tokens.key(t, head)[c] * float(1 + c % 3) + float(segment) - float(c % 5);
    put(*layer, segment, cell_range(200 * segment, n), tokens);
    Request prompt(shape, 1, random);
    prompt.record = true;
    prompt.segments = {segment};
    run(*layer, prompt);
    commit(*layer, segment);
  }
  for (const auto& segments : std::vector<std::vector<SegmentId>>{{}, {0}, {5}, {5, 0}, {2, 6}, {3}, {3, 6, 4000}}) {
    for (const uint32_t n_tokens : {1u, 11u}) {
      Request request(shape, n_tokens, random);
      request.segments = segments;
      check(*layer, request, segments.empty() ? all : segments, {1, 3});
    }
    if (HasFatalFailure()) return;
  }
}

// Streams of a batch, each with its own segment, mask and number of tokens, in one call: what each gives alone.
TEST_P(AttentionSpecTest, StreamsInOneCall) {
  Random random(38);
  const LayerShape shape{6, 2, 32, 40};
  for (const std::vector<uint32_t>& n_tokens : {std::vector<uint32_t>{1, 1}, {1, 1, 1, 1}, {5, 1, 9}, {33, 2}}) {
    auto layer = make_layer(shape, GetParam());
    std::vector<Request> requests;
    for (SegmentId segment = 0; segment < n_tokens.size(); ++segment) {  // each stream has its own cells 0..n
      const size_t n = 30 + 25 * segment;
      put(*layer, segment, cell_range(0, n), Tokens(shape, n, random));
      commit(*layer, segment);
      put(*layer, segment, cell_range(Cell(n), n_tokens[segment]), Tokens(shape, n_tokens[segment], random));
      requests.emplace_back(shape, n_tokens[segment], random, segment);
      requests.back().segments = {segment};
      requests.back().set_causal(Mask::Type::f16, uint32_t(n) + n_tokens[segment], uint32_t(n));
      requests.back().record = segment != 1;
    }
    std::vector<Expected> expected;
    for (const Request& request : requests) expected.push_back(expect(*layer, request.segments, request));
    for (const uint32_t threads : {1u, 2u, 3u}) {
      for (Request& request : requests) request.commit = threads == 3;  // the last time
      const auto outs = run_together(*layer, requests, threads);
      for (size_t i = 0; i < outs.size(); ++i) ASSERT_TRUE(matches(outs[i], expected[i])) << "stream " << i;
    }
    const bool keeps_staged = layer->spec().uncompressed();
    for (SegmentId segment = 0; segment < n_tokens.size(); ++segment)
      for (uint32_t head = 0; head < 2; ++head)
        ASSERT_EQ(count_tiers(layer->dump(segment, head)).staged, keeps_staged ? layer->n_cells(segment) : 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Specs, AttentionSpecTest, testing::ValuesIn(kSpecs), name_of_spec);

// The library's reference is the oracle of its kernels and benchmarks, so it must be as good as this file's: in double
// precision, with only the stored K and V and the result in single.
TEST(AttentionTest, ReferenceIsTheFormula) {
  Random random(36);
  for (const char* spec : kSpecs) {
    const LayerShape shape{4, 2, 40, 24};
    const auto layer = filled(shape, spec, 100, 20, random);
    Request request(shape, 3, random, 2);
    request.set_causal(Mask::Type::f16, 115, 90);
    request.softcap = 20.0f;
    request.sinks = {0.5f, -1.0f, 2.0f, 0.0f};
    request.slopes = {1.0f, 0.5f, 2.0f, 0.25f};
    Expected expected = expect(*layer, {0}, request);
    for (size_t i = 0; i < expected.out.size(); ++i) expected.bound[i] = kF32Epsilon * std::abs(expected.out[i]) + 1e-9;
    expected.bound_of_integers = expected.bound;
    EXPECT_TRUE(matches(run_reference(*layer, request), expected)) << spec;
  }
}

// The check can fail: it sees one token missing of 1,000, two exchanged keys, one wrong value channel, and NaN.
TEST(AttentionTest, WrongResultsAreCaught) {
  Random random(37);
  const LayerShape shape{2, 1, 64, 64};
  for (const char* spec : {"full", "mikv", "mikv-max"}) {
    const auto layer = filled(shape, spec, 1000, 0, random);
    Request request(shape, 1, random);
    std::vector<float> out = run(*layer, request);
    const std::vector<std::vector<StoredToken>> tokens = {stored_tokens(*layer, {0}, 0)};
    const bool rotated = layer->spec().hadamard;
    ASSERT_TRUE(matches(out, expect(tokens, request, rotated)));

    // A token that one of the two heads looks at: of the others nobody could tell whether they are there.
    const std::vector<double> w = weights(tokens[0], request, 0, 1);
    const auto heavy = std::max_element(w.begin(), w.end()) - w.begin();
    auto missing = tokens;
    missing[0].erase(missing[0].begin() + heavy);
    EXPECT_FALSE(matches(out, expect(missing, request, rotated))) << spec;
    auto exchanged = tokens;
    std::swap(exchanged[0][size_t(heavy)].k, exchanged[0][(size_t(heavy) + 500) % 1000].k);
    EXPECT_FALSE(matches(out, expect(exchanged, request, rotated))) << spec;
    auto wrong = tokens;
    wrong[0][size_t(heavy)].v[63] += 0.5f;
    EXPECT_FALSE(matches(out, expect(wrong, request, rotated))) << spec;
    out[5] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_FALSE(matches(out, expect(tokens, request, rotated))) << spec;
  }
}

}  // namespace
}  // namespace mikv::test::attention_test
