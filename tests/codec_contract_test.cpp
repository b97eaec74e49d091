// What is put comes back within half a quantisation step (Eq. 1 of MiKV), for every format, head dimension and
// grouping.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "symmetric_bound.hpp"
#include "test_cache.hpp"

namespace mikv::test::codec_contract_test {
namespace {

constexpr uint32_t kHeadDims[] = {8, 24, 40, 64, 72, 80, 96, 128, 256};
constexpr size_t kTokens = 37;  // two full blocks of 16 and an open one

/// The first element of `decoded` that is further from `given` than its group allows, or "".
std::string violation(const float* given, const std::vector<float>& decoded, uint32_t group, Format format) {
  for (uint32_t first = 0; first < decoded.size(); first += group) {
    double low = kInfinity, high = -kInfinity;
    for (uint32_t c = first; c < first + group; ++c) {
      const double stored = rounded_to_half(given[c]);
      low = std::min(low, stored), high = std::max(high, stored);
    }
    const double bound = format == Format::f16 ? 0.0 : quantisation_bound(low, high, format);
    for (uint32_t c = first; c < first + group; ++c) {
      const double error = std::abs(decoded[c] - double(rounded_to_half(given[c])));
      if (!(error <= bound)) {
        return "channel " + std::to_string(c) + ": " + std::to_string(given[c]) + " came back as " +
               std::to_string(decoded[c]) + ", off by " + std::to_string(error) + ", bound " + std::to_string(bound);
      }
    }
  }
  return "";
}

/// Puts tokens in a cache that stores all of them in one format, and compares what comes back.
void check(Tokens& tokens, Format format, const std::string& group) {
  const std::string name(format_name(format));
  const bool in_hi = format == Format::f16;  // the rest has a uniform lo tier
  const auto layer = make_layer(tokens.shape, in_hi ? "mikv:keep=1,hi=f16,lo=int4,outlier=none,group=" + group
                                                    : "rtn4:lo=" + name + ",group=" + group);
  put(*layer, 0, cell_range(5, tokens.n), tokens);
  commit(*layer, 0);
  for (uint32_t head = 0; head < tokens.shape.n_kv_heads; ++head) {
    const std::vector<StoredToken> stored = sorted_dump(*layer, 0, head);
    ASSERT_EQ(stored.size(), tokens.n);
    for (size_t t = 0; t < tokens.n; ++t) {
      ASSERT_EQ(stored[t].cell, 5 + t);
      ASSERT_EQ(stored[t].tier, in_hi ? TokenTier::hi : TokenTier::lo);
      ASSERT_EQ(
          violation(tokens.key(t, head), stored[t].k, layer->spec().group.resolve(tokens.shape.head_dim_k), format), "")
          << "key " << t << " of head " << head;
      ASSERT_EQ(
          violation(tokens.value(t, head), stored[t].v, layer->spec().group.resolve(tokens.shape.head_dim_v), format),
          "")
          << "value " << t << " of head " << head;
    }
  }
}

class CodecContractTest : public testing::TestWithParam<Format> {};

TEST_P(CodecContractTest, EveryHeadDimAndGroup) {
  Random random(10);
  for (const uint32_t dim : kHeadDims) {
    for (const std::string group : {"auto", "half", "head", "8", "4", "1"}) {
      SCOPED_TRACE("head_dim " + std::to_string(dim) + ", group " + group);
      Tokens tokens({2, 2, dim, dim}, kTokens, random, 3);
      check(tokens, GetParam(), group);
    }
  }
}

TEST_P(CodecContractTest, KeysAndValuesOfDifferentWidth) {
  Random random(11);
  for (const uint32_t dim_k : kHeadDims) {
    for (const uint32_t dim_v : {8u, 64u, 72u, 128u}) {
      SCOPED_TRACE(std::to_string(dim_k) + " and " + std::to_string(dim_v));
      Tokens tokens({2, 2, dim_k, dim_v}, kTokens, random);
      check(tokens, GetParam(), "auto");
    }
  }
}

TEST_P(CodecContractTest, ConstantGroupsAreExact) {
  Random random(12);
  Tokens tokens({2, 2, 64, 64}, kTokens, random);
  for (size_t t = 0; t < tokens.n; ++t)
    for (uint32_t head = 0; head < 2; ++head)
      for (uint32_t c = 0; c < 64; ++c) {
        const float halves[] = {0.0f, -0.0f, 1.0f, -3.5f, 0x1p-24f, 65504.0f, -65504.0f};
        tokens.key(t, head)[c] = halves[(t + c / 32) % 7];
        tokens.value(t, head)[c] = halves[(t + head) % 7];
      }
  const auto layer =
      make_layer(tokens.shape, GetParam() == Format::f16 ? "mikv:keep=1,hi=f16,lo=int4,outlier=none,group=half"
                                                         : "rtn4:lo=" + std::string(format_name(GetParam())));
  put(*layer, 0, cell_range(0, tokens.n), tokens);
  commit(*layer, 0);
  for (uint32_t head = 0; head < 2; ++head) {
    const std::vector<StoredToken> stored = sorted_dump(*layer, 0, head);
    for (size_t t = 0; t < tokens.n; ++t)
      for (uint32_t c = 0; c < 64; ++c) {
        ASSERT_EQ(stored[t].k[c], tokens.key(t, head)[c]) << t << " " << c;
        ASSERT_EQ(stored[t].v[c], tokens.value(t, head)[c]) << t << " " << c;
      }
  }
}

TEST_P(CodecContractTest, SmallAndLargeRanges) {
  Random random(13);
  // Subnormal steps, ordinary ones on a large offset, and the whole range of a half.
  for (const auto& [offset, range] : {std::pair{0.0f, 0x1p-20f},
                                      {0.0f, 1e-3f},
                                      {1000.0f, 1.0f},
                                      {-3.0f, 1e-2f},
                                      {0.0f, 65504.0f},
                                      {100.0f, 30000.0f}}) {
    SCOPED_TRACE("offset " + std::to_string(offset) + ", range " + std::to_string(range));
    Tokens tokens({2, 2, 64, 40}, kTokens, random);
    for (float& x : tokens.k) x = offset + range * random.uniform(-1.0f, 1.0f);
    for (float& x : tokens.v) x = offset + range * random.uniform(-1.0f, 1.0f);
    check(tokens, GetParam(), "half");
  }
}

TEST_P(CodecContractTest, NonFiniteElementsDoNotPoisonTheirGroup) {
  Random random(14);
  Tokens tokens({1, 1, 64, 64}, kTokens, random);
  const float odd[] = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f,
                       65519.0f,  70000.0f};
  const float stored_as[] = {65504.0f, -65504.0f, 0.0f, 65504.0f, -65504.0f, 65504.0f, 65504.0f};
  Tokens expected = tokens;
  for (size_t t = 0; t < tokens.n; ++t) {
    tokens.key(t, 0)[t % 64] = odd[t % 7], expected.key(t, 0)[t % 64] = stored_as[t % 7];
    tokens.value(t, 0)[t % 64] = odd[t % 7], expected.value(t, 0)[t % 64] = stored_as[t % 7];
  }
  const std::string spec = GetParam() == Format::f16 ? "mikv:keep=1,hi=f16,lo=int4,outlier=none,group=half"
                                                     : "rtn4:lo=" + std::string(format_name(GetParam()));
  const auto layer = make_layer(tokens.shape, spec);
  put(*layer, 0, cell_range(0, tokens.n), tokens);
  const std::vector<StoredToken> staged = sorted_dump(*layer, 0, 0);
  commit(*layer, 0);
  const std::vector<StoredToken> stored = sorted_dump(*layer, 0, 0);
  for (size_t t = 0; t < tokens.n; ++t) {
    ASSERT_EQ(violation(expected.key(t, 0), staged[t].k, 32, Format::f16), "") << t;
    ASSERT_EQ(violation(expected.key(t, 0), stored[t].k, 32, GetParam()), "") << t;
    ASSERT_EQ(violation(expected.value(t, 0), stored[t].v, 32, GetParam()), "") << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CodecContractTest,
                         testing::Values(Format::int2, Format::int3, Format::int4, Format::int5, Format::int8,
                                         Format::f16),
                         [](const auto& parameter) { return std::string(format_name(parameter.param)); });

// The hi tier is quantised by the same rule.
TEST(CodecContractHiTest, HiFormats) {
  Random random(15);
  for (const Format format : {Format::int8, Format::int5, Format::int4, Format::int2}) {
    Tokens tokens({2, 2, 80, 64}, kTokens, random);
    const auto layer =
        make_layer(tokens.shape, "mikv:importance=full,outlier=none,hi=" + std::string(format_name(format)));
    put(*layer, 0, cell_range(0, tokens.n), tokens);
    commit(*layer, 0);
    for (uint32_t head = 0; head < 2; ++head) {
      const std::vector<StoredToken> stored = sorted_dump(*layer, 0, head);
      ASSERT_EQ(count_tiers(stored).hi, tokens.n);
      for (size_t t = 0; t < tokens.n; ++t) {
        ASSERT_EQ(violation(tokens.key(t, head), stored[t].k, 40, format), "");
        ASSERT_EQ(violation(tokens.value(t, head), stored[t].v, 64, format), "");
      }
    }
  }
}

// The symmetric quantiser stays within half a step too.
TEST(CodecContractSymmetricTest, EveryWidthHeadDimensionAndGroup) {
  Random random(16);
  for (const Format format : {Format::int2, Format::int3, Format::int4, Format::int5, Format::int8}) {
    for (const uint32_t dim : kHeadDims) {
      Tokens tokens({2, 2, dim, dim}, kTokens, random);
      const auto layer = make_layer(tokens.shape, "llm-qat4:group=half,lo=" + std::string(format_name(format)));
      put(*layer, 0, cell_range(0, tokens.n), tokens);
      commit(*layer, 0);
      const std::vector<StoredToken> stored = sorted_dump(*layer, 0, 1);
      for (size_t t = 0; t < tokens.n; ++t) {
        const float* given = tokens.key(t, 1);
        for (uint32_t first = 0; first < dim; first += dim / 2) {
          double largest = 0.0;
          for (uint32_t c = first; c < first + dim / 2; ++c)
            largest = std::max(largest, std::abs(double(rounded_to_half(given[c]))));
          for (uint32_t c = first; c < first + dim / 2; ++c)
            ASSERT_LE(std::abs(stored[t].k[c] - double(rounded_to_half(given[c]))), symmetric_bound(largest, format))
                << format_name(format) << ", channel " << c << " of " << dim;
        }
      }
    }
  }
}

// The check above can fail: one code off by one is a whole step, twice the bound.
TEST(CodecContractHiTest, OneStepOffIsCaught) {
  std::vector<float> given = {0.0f, 1.0f, 2.0f, 3.0f, 0.5f, 1.25f, 2.5f, 2.75f};
  std::vector<float> decoded = {0.0f, 1.0f, 2.0f, 3.0f, 0.0f, 1.0f, 2.0f, 3.0f};  // INT2, halves either way
  EXPECT_EQ(violation(given.data(), decoded, 8, Format::int2), "");
  decoded[5] = 2.0f;
  EXPECT_NE(violation(given.data(), decoded, 8, Format::int2), "");
  decoded[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(violation(given.data(), decoded, 8, Format::int2), "");
}

// The shapes and groups that create() must refuse, by name.
TEST(CreateTest, RefusesWhatItCannotServe) {
  const auto error_of = [](const LayerShape& shape, std::string_view spec) {
    const auto layer = LayerCache::create(shape, Spec::parse(spec).value());
    return layer ? std::string("accepted") : layer.message();
  };
  EXPECT_EQ(error_of({4, 2, 64, 64}, "mikv"), "accepted");
  EXPECT_EQ(error_of({4, 2, 512, 8}, "mikv:lo=int3,group=8"), "accepted");
  EXPECT_NE(error_of({4, 2, 80, 80}, "mikv:lo=int3,group=64").find("group"), std::string::npos);
  EXPECT_NE(error_of({4, 2, 64, 80}, "mikv:lo=int3,group=64").find("group"), std::string::npos);
  for (const LayerShape& shape : {LayerShape{4, 3, 64, 64},
                                  {0, 0, 64, 64},
                                  {4, 0, 64, 64},
                                  {0, 4, 64, 64},
                                  {17, 1, 64, 64},
                                  {4, 2, 0, 64},
                                  {4, 2, 64, 0},
                                  {4, 2, 12, 64},
                                  {4, 2, 64, 20},
                                  {4, 2, 520, 64}}) {
    const std::string error = error_of(shape, "mikv");
    EXPECT_NE(error, "accepted") << shape.n_heads << " " << shape.n_kv_heads << " " << shape.head_dim_k;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace mikv::test::codec_contract_test
