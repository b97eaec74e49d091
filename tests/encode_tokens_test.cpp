// Encoding of many tokens at once: every SIMD target gives the codes of the formula, to the bit.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <span>
#include <vector>

#include "codec/block.hpp"
#include "codec/encode_kernels.hpp"
#include "codec/fp16.hpp"
#include "codec/scale8.hpp"
#include "codec/trellis.hpp"
#include "codec/trellis_places.hpp"
#include "mikv/simd.hpp"
#include "test_data.hpp"

namespace mikv::test::encode_tokens_test {
namespace {

using codec::kTileSide;
using codec::Ring;

// The search of one ring, a state and a code at a time (codec/trellis.hpp).
class ReferenceRing {
 public:
  ReferenceRing(Ring ring, uint32_t bits, std::span<const float> x)
      : bits_(bits),
        n_states_(1u << (codec::window_bits(ring, bits) - bits)),
        table_(codec::trellis_levels(ring, bits)),
        x_(x.begin(), x.end()) {}

  std::vector<uint8_t> codes() const {
    Round free = run(run(std::vector<float>(n_states_, 0.0f)).cost);
    uint32_t end = 0;
    for (uint32_t s = 1; s < n_states_; ++s) end = free.cost[s] < free.cost[end] ? s : end;
    const auto [before, unused] = trace(free, end);
    const Round through_end = run_through(end), through_before = run_through(before);
    const bool better = through_before.cost[before] < through_end.cost[end];
    return better ? trace(through_before, before).second : trace(through_end, end).second;
  }

 private:
  struct Round {
    std::vector<float> cost;                       // of the states in the end
    std::vector<std::vector<uint32_t>> came_from;  // [step][state]: what stands above the state's window
  };

  Round run(std::vector<float> cost) const {
    Round round;
    const uint32_t n_codes = 1u << bits_, from = n_codes - 1;
    for (size_t t = x_.size(); t-- > 0;) {
      std::vector<float> next(n_states_);
      std::vector<uint32_t> came_from(n_states_);
      for (uint32_t s = 0; s < n_states_; ++s) {
        uint32_t best = UINT32_MAX;
        for (uint32_t above = 0; above < n_codes; ++above) {
          const uint32_t window = above * n_states_ + s;
          const float off = x_[t] - (float(table_[window]) - codec::kTrellisCentre);
          const float all = std::fma(off, off, cost[window >> bits_]);
          best = std::min(best, (std::bit_cast<uint32_t>(all) & ~from) | above);
        }
        next[s] = std::bit_cast<float>(best);
        came_from[s] = best & from;
      }
      cost = std::move(next);
      round.came_from.push_back(std::move(came_from));
    }
    round.cost = std::move(cost);
    return round;
  }

  Round run_through(uint32_t seam) const {
    std::vector<float> cost(n_states_, 1e30f);
    cost[seam] = 0.0f;
    return run(cost);
  }

  // Where the path that ends in `state` began, and its codes.
  std::pair<uint32_t, std::vector<uint8_t>> trace(const Round& round, uint32_t state) const {
    std::vector<uint8_t> codes;
    for (size_t t = x_.size(); t-- > 0;) {
      const uint32_t window = round.came_from[t][state] * n_states_ + state;
      codes.push_back(uint8_t(window & ((1u << bits_) - 1)));
      state = window >> bits_;
    }
    return {state, codes};
  }

  uint32_t bits_, n_states_;
  const codec::Levels& table_;
  std::vector<float> x_;
};

template <uint32_t kBits>
std::vector<uint8_t> ring_codes(Ring ring, const float* x, float inverse) {
  const codec::Places places = codec::make_places(ring, kBits);
  std::vector<uint8_t> codes(kTileSide);
  for (uint32_t first = 0; first < kTileSide; first += places.length) {
    std::vector<float> in_ring;
    for (uint32_t i = first; i < first + places.length; ++i) in_ring.push_back(x[places.at[i]] * inverse);
    const std::vector<uint8_t> found = ReferenceRing(ring, kBits, in_ring).codes();
    for (uint32_t i = 0; i < places.length; ++i) codes[places.at[first + i]] = found[i];
  }
  return codes;
}

std::vector<uint8_t> reference_codes(Ring ring, uint32_t bits, const float* x, float inverse) {
  switch (bits) {
    case 1: return ring_codes<1>(ring, x, inverse);
    case 2: return ring_codes<2>(ring, x, inverse);
    case 3: return ring_codes<3>(ring, x, inverse);
    case 4: return ring_codes<4>(ring, x, inverse);
    default: break;
  }
  std::vector<uint8_t> codes;
  const codec::Levels& table = codec::trellis_levels(ring, bits);
  for (uint32_t i = 0; i < kTileSide; ++i) {
    const float twice = 2.0f * std::fma(x[i], inverse, codec::kTrellisCentre);
    uint8_t code = 0;
    while (code + 1u < table.size() && twice > float(table[code]) + float(table[code + 1u])) ++code;
    codes.push_back(code);
  }
  return codes;
}

struct Encoded {
  std::vector<uint8_t> codes, scales;
  bool operator==(const Encoded&) const = default;
};

// quantise_trellis() with reference_codes().
Encoded reference(const codec::EncodeJob& job) {
  Encoded result;
  const uint32_t n_tiles = codec::tiles_of(job.dim);
  for (uint32_t token = 0; token < job.n; ++token) {
    std::vector<float> x(job.values + token * job.dim, job.values + (token + 1) * job.dim);
    job.axes->to_tier(x);
    x.resize(n_tiles * kTileSide, 0.0f);
    float squares = 0.0f, of_weights = 0.0f, projected = 0.0f, level_squares = 0.0f;
    for (uint32_t t = 0; t < n_tiles; ++t) {
      float sum = 0.0f;
      for (uint32_t i = 0; i < kTileSide; ++i) sum += x[t * kTileSide + i] * x[t * kTileSide + i];
      squares += job.row->weight[t] * sum;
      of_weights += job.row->weight[t] * float(kTileSide);
    }
    const float size = codec::kTrellisUnit * std::sqrt(squares / of_weights);
    const float inverse = 1.0f / codec::scale8_to_f32(codec::scale8_from_f32(size));
    for (uint32_t t = 0; t < n_tiles; ++t) {
      const float* of_tile = &x[t * kTileSide];
      const std::vector<uint8_t> codes = reference_codes(job.ring, job.row->bits[t], of_tile, inverse);
      std::array<uint8_t, kTileSide> levels;
      codec::ring_levels(job.ring, job.row->bits[t], codes.data(), levels.data());
      float dot = 0.0f, square = 0.0f;
      for (uint32_t i = 0; i < kTileSide; ++i) {
        const float level = float(levels[i]) - codec::kTrellisCentre;
        dot += of_tile[i] * level, square += level * level;
      }
      projected += job.row->weight[t] * dot;
      level_squares += job.row->weight[t] * square;
      result.codes.insert(result.codes.end(), codes.begin(), codes.end());
    }
    result.scales.push_back(codec::scale8_from_f32(projected / level_squares));
  }
  return result;
}

codec::Axes any_axes(uint32_t dim, Random& random) {
  codec::Axes axes;
  for (uint32_t c = 0; c < dim; ++c) {
    axes.centre.push_back(to_half(random.normal()));
    axes.balancer.push_back(to_half(std::exp(random.uniform(-3.0f, 3.0f))));
    axes.order.push_back(uint16_t(c));
  }
  for (uint32_t c = dim - 1; c > 0; --c) std::swap(axes.order[c], axes.order[random.below(c + 1)]);
  for (uint32_t left = dim; left > 0; left -= axes.turns.back()) {
    const uint32_t longest = std::bit_floor(left);
    axes.turns.push_back(uint16_t(longest > kTileSide && random.below(2) ? longest / 2 : longest));
  }
  return axes;
}

// A job with all that it points to.
struct Case {
  codec::Axes axes;
  codec::TileTable row;
  std::vector<float> values;
  std::vector<uint8_t> codes, scales;
  codec::EncodeJob job{};

  Case(Ring ring, uint32_t dim, uint32_t n, std::span<const uint8_t> bits, Random& random)
      : values(random.normals(size_t{n} * dim)), codes(size_t{n} * codec::tiles_of(dim) * kTileSide), scales(n) {
    if (random.below(4)) axes = any_axes(dim, random);
    for (uint32_t t = 0; t < codec::tiles_of(dim); ++t) {
      row.bits[t] = bits[random.below(uint32_t(bits.size()))];
      row.weight[t] = random.uniform(0.01f, 1.0f);
    }
    const float size = std::exp(random.uniform(-7.0f, 7.0f));
    for (float& x : values) x *= size;
    if (random.below(8) == 0) values[random.below(uint32_t(values.size()))] = 65504.0f;
    if (random.below(8) == 0) std::fill_n(values.begin(), dim, 0.0f);
    job = {ring, &axes, &row, values.data(), n, dim, codes.data(), scales.data()};
  }

  Encoded encoded(const codec::EncodeKernels& kernels) {
    kernels.encode(job);
    return {codes, scales};
  }
};

TEST(EncodeTokensTest, EveryTargetGivesTheCodesOfTheFormula) {
  Random random(160);
  constexpr std::array<uint8_t, 5> kBits{1, 2, 3, 4, 6};
  for (const Ring ring : {Ring::key, Ring::value}) {
    for (size_t b = 0; b <= kBits.size(); ++b) {  // each width alone, then all of them
      const auto bits = b < kBits.size() ? std::span(kBits).subspan(b, 1) : std::span(kBits);
      for (int trial = 0; trial < 12; ++trial) {
        const uint32_t dim = std::array{8u, 24u, 64u, 72u, 128u}[random.below(5)], n = 1 + random.below(16);
        Case of(ring, dim, n, bits, random);
        const Encoded expected = reference(of.job);
        for (const codec::EncodeKernels& kernels : codec::all_encode_kernels()) {
          ASSERT_EQ(of.encoded(kernels), expected) << kernels.name << ", " << (ring == Ring::key ? "keys" : "values")
                                                   << ", dim " << dim << ", tokens " << n << ", widths " << b;
        }
      }
    }
  }
}

// A block does not show how its tokens were encoded. Where the CPU rounds a product and a sum at once, as all kernels
// do, and the build has code for that.
TEST(EncodeTokensTest, TogetherIsAsOneByOne) {
#if !defined(__x86_64__) || defined(__clang__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "one by one, products and sums may be rounded apart";
#else
  if (!__builtin_cpu_supports("fma")) GTEST_SKIP() << "one by one, products and sums are rounded apart";
  Random random(161);
  for (int trial = 0; trial < 60; ++trial) {
    const uint32_t dim_k = 8 * (1 + random.below(20)), dim_v = 8 * (1 + random.below(20));
    const uint32_t first = random.below(16), n = 1 + random.below(16 - first);
    constexpr std::array<uint8_t, 5> kBits{1, 2, 3, 4, 6};
    const Case k(Ring::key, dim_k, n, kBits, random), v(Ring::value, dim_v, n, kBits, random);
    const auto tiles = [](const Case& of, uint32_t dim) {
      return codec::BlockLayout::MixedTiles{std::span(of.row.bits).first(codec::tiles_of(dim)),
                                            std::span(of.row.weight).first(codec::tiles_of(dim))};
    };
    const auto layout = codec::BlockLayout::make_mixed(dim_k, dim_v, tiles(k, dim_k), tiles(v, dim_v));
    const codec::Transform transform{k.axes, v.axes};
    std::vector<uint8_t> together(layout.bytes, 0x5a), single = together;
    for (uint32_t i = 0; i < n; ++i) {
      std::vector<float> key(&k.values[i * dim_k], &k.values[i * dim_k] + dim_k);
      std::vector<float> value(&v.values[i * dim_v], &v.values[i * dim_v] + dim_v);
      transform.key.to_tier(key);
      transform.value.to_tier(value);
      codec::encode_token(single.data(), layout, first + i, key.data(), value.data());
    }
    codec::encode_tokens(together.data(), layout, transform, first, n, k.values.data(), v.values.data());
    ASSERT_EQ(together, single) << "trial " << trial;
  }
#endif
}

TEST(EncodeTokensTest, HalvesOfABlockAreReadAsOneByOne) {
  Random random(162);
  const auto layout = codec::BlockLayout::make({.dim_k = 40, .dim_v = 72, .scored = true});
  std::vector<uint8_t> block(layout.bytes);
  for (uint32_t i = 0; i < codec::kBlockTokens; ++i) {
    codec::encode_token(block.data(), layout, i, random.normals(40).data(), random.normals(72).data());
  }
  constexpr uint32_t kTokens = 13;
  std::vector<float> k(kTokens * 40), v(kTokens * 72), k1(40), v1(72);
  codec::decode_f16(block.data(), layout, kTokens, k.data(), v.data());
  for (uint32_t i = 0; i < kTokens; ++i) {
    codec::decode_token(block.data(), layout, i, k1.data(), v1.data());
    EXPECT_TRUE(std::ranges::equal(k1, std::span(k).subspan(i * 40, 40)));
    EXPECT_TRUE(std::ranges::equal(v1, std::span(v).subspan(i * 72, 72)));
  }
}

// Attention's targets all have a kernel of that name here, or a better one.
TEST(EncodeTokensTest, TargetsAreThoseOfAttention) {
  for (const std::string& name : simd_targets()) {
    codec::set_encode_target(name);
    const bool byte_products = name == "avx512vnni" || name == "avxvnni" || name == "neondot";  // no use for them
    EXPECT_EQ(codec::encode_kernels().name, byte_products ? codec::all_encode_kernels().front().name : name);
  }
  codec::set_encode_target("");
}

}  // namespace
}  // namespace mikv::test::encode_tokens_test
