// Outlier handling: what is stored is what the equations say (centre, balancer, rotation), nothing is lost by it where
// the tier is f16, and attention over few bits gets better where keys or values have outlier channels.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <string>

#include "test_attention.hpp"

namespace mikv::test::outlier_test {
namespace {

constexpr uint32_t kHeadDims[] = {8, 24, 40, 64, 72, 80, 96, 128, 256};

/// The rotation by its definition, O(n^2): in blocks of the largest power of two that divides the dimension,
/// H_ij = (-1)^popcount(i & j) / sqrt(block).
std::vector<double> rotated(const std::vector<double>& x) {
  const size_t block = x.size() & (~x.size() + 1);
  std::vector<double> y(x.size(), 0.0);
  for (size_t i = 0; i < x.size(); ++i)
    for (size_t j = 0; j < block; ++j)
      y[i] += (std::popcount((i % block) & j) % 2 ? -1.0 : 1.0) * x[i / block * block + j] / std::sqrt(double(block));
  return y;
}

/// Mean and Eq. 2 of one KV head, from what was put and asked.
struct Segment {
  std::vector<double> centre, balancer;
};

Segment segment_of(Tokens& tokens, const Request& prompt, uint32_t kv_head, const Spec& spec) {
  const uint32_t dim = tokens.shape.head_dim_k;
  Segment segment{std::vector<double>(dim, 0.0), std::vector<double>(dim, 1.0)};
  for (uint32_t c = 0; c < dim; ++c) {
    double sum = 0.0, k_max = 0.0, q_max = 0.0;
    for (size_t t = 0; t < tokens.n; ++t) sum += rounded_to_half(tokens.key(t, kv_head)[c]);
    if (spec.center) segment.centre[c] = from_half(to_half(sum / double(tokens.n)));
    for (size_t t = 0; t < tokens.n; ++t)
      k_max = std::max(k_max, std::abs(rounded_to_half(tokens.key(t, kv_head)[c]) - segment.centre[c]));
    for (uint32_t t = 0; t < prompt.n_tokens; ++t)
      for (uint32_t head = kv_head * prompt.group(); head < (kv_head + 1) * prompt.group(); ++head)
        q_max = std::max(q_max, std::abs(double(prompt.query(t, head)[c])));
    if (spec.balancer) segment.balancer[c] = from_half(to_half(std::sqrt(q_max / k_max)));
  }
  return segment;
}

/// Every element of `stored`, in the tier's coordinates, is within a quantisation step's half of `given`.
/// Halves for centre and balancer may be rounded the other way: 1 part in 1000 of a value, and of the range.
void expect_quantised(const std::vector<double>& given, const std::vector<double>& stored, uint32_t group,
                      Format format) {
  for (size_t first = 0; first < given.size(); first += group) {
    double low = kInfinity, high = -kInfinity;
    for (size_t c = first; c < first + group; ++c) low = std::min(low, given[c]), high = std::max(high, given[c]);
    const double highest = std::max(std::abs(low), std::abs(high));
    const double bound =
        (format == Format::f16 ? half_rounding(highest) : quantisation_bound(low, high, format)) + 2e-3 * highest;
    for (size_t c = first; c < first + group; ++c)
      ASSERT_LE(std::abs(stored[c] - given[c]), bound) << "channel " << c << " of " << given.size();
  }
}

TEST(OutlierTest, TiersHoldWhatTheEquationsSay) {
  Random random(60);
  for (const uint32_t dim : kHeadDims) {
    for (const std::string outlier :
         {"none", "balancer", "center", "hadamard", "balancer+center", "balancer+center+hadamard"}) {
      for (const std::string lo : {"int3", "int8"}) {
        SCOPED_TRACE("head_dim " + std::to_string(dim) + ", " + outlier + ", " + lo);
        const LayerShape shape{6, 2, dim, dim};
        Tokens tokens(shape, 40, random);
        for (size_t t = 0; t < tokens.n; ++t)  // offsets and scales that differ by channel: something to undo
          for (uint32_t head = 0; head < 2; ++head)
            for (uint32_t c = 0; c < dim; ++c) {
              float& x = tokens.key(t, head)[c];
              x = x * float(1 + c % 5 * 3) + (c % 7 == 3 ? 20.0f : 0.0f);
            }
        const auto layer = make_layer(shape, "rtn4:group=half,outlier=" + outlier + ",lo=" + lo);
        put(*layer, 0, cell_range(0, tokens.n), tokens);
        Request prompt(shape, 5, random);
        prompt.record = true;
        for (size_t i = 0; i < prompt.q.size(); ++i) prompt.q[i] *= 1.0f + float(i % 3);
        run(*layer, prompt, 2);
        commit(*layer, 0);

        const Spec& spec = layer->spec();
        for (uint32_t head = 0; head < 2; ++head) {
          const Segment segment = segment_of(tokens, prompt, head, spec);
          const std::vector<StoredToken> stored = sorted_dump(*layer, 0, head);
          for (size_t t = 0; t < tokens.n; ++t) {
            std::vector<double> given_k, stored_k, given_v, stored_v;
            for (uint32_t c = 0; c < dim; ++c) {
              given_k.push_back((rounded_to_half(tokens.key(t, head)[c]) - segment.centre[c]) * segment.balancer[c]);
              stored_k.push_back((stored[t].k[c] - segment.centre[c]) * segment.balancer[c]);
              given_v.push_back(rounded_to_half(tokens.value(t, head)[c]));
              stored_v.push_back(stored[t].v[c]);
            }
            for (auto* values : {&given_k, &stored_k, &given_v, &stored_v})
              if (spec.hadamard) *values = rotated(*values);
            expect_quantised(given_k, stored_k, dim / 2, spec.lo);
            expect_quantised(given_v, stored_v, dim / 2, spec.lo);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// In an f16 tier each coordinate is rounded once more, and nothing else happens: a rotated key by 2^-11 of its length.
TEST(OutlierTest, HalfPrecisionTiersLoseNothingElse) {
  Random random(61);
  for (const uint32_t dim : kHeadDims) {
    for (const std::string outlier : {"none", "center", "hadamard", "center+hadamard", "balancer+center+hadamard"}) {
      SCOPED_TRACE("head_dim " + std::to_string(dim) + ", " + outlier);
      const LayerShape shape{2, 1, dim, dim};
      Tokens tokens(shape, 30, random);
      for (size_t t = 0; t < tokens.n; ++t) tokens.key(t, 0)[3] += 50.0f;
      const auto layer = make_layer(shape, "mikv:keep=1,hi=f16,lo=int4,outlier=" + outlier);
      put(*layer, 0, cell_range(0, tokens.n), tokens);
      commit(*layer, 0);  // no query was seen: the balancer is 1
      const std::vector<StoredToken> stored = sorted_dump(*layer, 0, 0);
      ASSERT_EQ(count_tiers(stored).hi, tokens.n);
      for (size_t t = 0; t < tokens.n; ++t) {
        double square_k = 0.0, square_v = 0.0;
        for (uint32_t c = 0; c < dim; ++c) {
          square_k += double(tokens.key(t, 0)[c]) * tokens.key(t, 0)[c];
          square_v += double(tokens.value(t, 0)[c]) * tokens.value(t, 0)[c];
        }
        // Staged first (one rounding), then stored (the second); |k - mu| <= 2 |k|; log2(512) roundings of the
        // rotation.
        const double k_bound = 3.0 * 0x1p-11 * std::sqrt(square_k) + 20.0 * kF32Epsilon * std::sqrt(square_k);
        const double v_bound = 2.0 * 0x1p-11 * std::sqrt(square_v) + 20.0 * kF32Epsilon * std::sqrt(square_v);
        for (uint32_t c = 0; c < dim; ++c) {
          ASSERT_LE(std::abs(double(stored[t].k[c]) - tokens.key(t, 0)[c]), k_bound);
          ASSERT_LE(std::abs(double(stored[t].v[c]) - tokens.value(t, 0)[c]), v_bound);
        }
      }
    }
  }
}

/// Root mean square error of attention under a spec, against attention before anything was compressed.
double attention_error(const std::string& spec, Tokens& tokens, const std::function<void(Request&)>& shape_queries) {
  Random random(62);
  const auto layer = make_layer(tokens.shape, spec);
  put(*layer, 0, cell_range(0, tokens.n), tokens);
  Request prompt(tokens.shape, 40, random);
  shape_queries(prompt);
  prompt.record = true;
  run(*layer, prompt);
  Request request(tokens.shape, 20, random);
  shape_queries(request);
  const std::vector<float> exact = run(*layer, request);
  commit(*layer, 0);
  EXPECT_EQ(count_tiers(layer->dump(0, 0)).staged, 0u);
  const std::vector<float> compressed = run(*layer, request);
  double square = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) square += std::pow(double(exact[i]) - compressed[i], 2);
  return std::sqrt(square / double(exact.size()));
}

constexpr LayerShape kShape{4, 2, 128, 128};
constexpr size_t kTokens = 256;
const auto kPlainQueries = [](Request&) {};

// Qwen's keys: the projection's bias puts a constant of 100 in a few channels.
TEST(OutlierTest, CentringUndoesAKeyBias) {
  Random random(63);
  Tokens tokens(kShape, kTokens, random);
  for (size_t t = 0; t < kTokens; ++t)
    for (uint32_t head = 0; head < 2; ++head)
      for (const uint32_t c : {5u, 70u, 100u}) tokens.key(t, head)[c] += c == 70 ? -100.0f : 100.0f;
  const double none = attention_error("rtn2", tokens, kPlainQueries);
  const double balancer = attention_error("rtn2:outlier=balancer", tokens, kPlainQueries);
  const double center = attention_error("rtn2:outlier=center", tokens, kPlainQueries);
  const double both = attention_error("rtn2:outlier=balancer+center", tokens, kPlainQueries);
  const double all = attention_error("rtn2:outlier=balancer+center+hadamard", tokens, kPlainQueries);
  RecordProperty("none_balancer_center_both_all", std::to_string(none) + " " + std::to_string(balancer) + " " +
                                                      std::to_string(center) + " " + std::to_string(both) + " " +
                                                      std::to_string(all));
  // Measured: 1.01, 0.61, 0.070, 0.068, 0.069; half of the ratios is asked for.
  EXPECT_LT(7.0 * center, none);
  EXPECT_LT(7.0 * both, none);
  EXPECT_LT(7.0 * all, none);
  EXPECT_LT(4.0 * both, balancer) << "a balancer alone leaves the constant in the group's range";
}

// A channel where keys are 30 times larger and queries 30 times smaller: b makes both alike.
TEST(OutlierTest, BalancingUndoesAnOutlierChannel) {
  Random random(64);
  Tokens tokens(kShape, kTokens, random);
  for (size_t t = 0; t < kTokens; ++t)
    for (uint32_t head = 0; head < 2; ++head)
      for (const uint32_t c : {9u, 77u}) tokens.key(t, head)[c] *= 30.0f;
  const auto small_queries = [](Request& request) {
    for (uint32_t t = 0; t < request.n_tokens; ++t)
      for (uint32_t head = 0; head < kShape.n_heads; ++head)
        for (const uint32_t c : {9u, 77u})
          request.q[t * request.q_token_stride() + head * request.q_head_stride() + c] /= 30.0f;
  };
  const double none = attention_error("rtn4", tokens, small_queries);
  const double balancer = attention_error("rtn4:outlier=balancer", tokens, small_queries);
  EXPECT_LT(3.0 * balancer, none);
}

// An outlier channel of the values, which neither centre nor balancer touch: the rotation spreads it. Keys are 0, which
// every format holds exactly, so that only the values' error is seen.
TEST(OutlierTest, RotationSpreadsAValueOutlier) {
  for (const uint32_t dim : {64u, 80u, 96u, 128u, 256u}) {
    Random random(65);
    Tokens tokens({4, 2, dim, dim}, kTokens, random);
    std::fill(tokens.k.begin(), tokens.k.end(), 0.0f);
    for (size_t t = 0; t < kTokens; ++t)
      for (uint32_t head = 0; head < 2; ++head) tokens.value(t, head)[dim - 3] += t % 2 ? 40.0f : -40.0f;
    const double none = attention_error("rtn4", tokens, kPlainQueries);
    const double hadamard = attention_error("rtn4:outlier=hadamard", tokens, kPlainQueries);
    RecordProperty("ratio_" + std::to_string(dim), std::to_string(none / hadamard));
    EXPECT_LT(1.2 * hadamard, none) << dim;  // measured over six seeds: 1.46 (at 80, rotated in blocks of 16) to 3.3
  }
}

}  // namespace
}  // namespace mikv::test::outlier_test
