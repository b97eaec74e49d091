#include "test_attention.hpp"

#include <algorithm>
#include <cmath>
#include <thread>

namespace mikv::test {
namespace {

constexpr float kUntouched = 12345.0f;

struct Memory {
  std::vector<float> out;
  std::vector<float> mask_f32;
  std::vector<uint16_t> mask_f16;
};

/// Rows of the mask are handed over with a gap of 3 columns of zeros (visible), which must not be read as cells.
constexpr uint32_t kMaskGap = 3;

LayerAttendArgs arguments(const Request& request, Memory& memory) {
  LayerAttendArgs args;
  args.q = request.q.data();
  args.q_token_stride = request.q_token_stride();
  args.q_head_stride = request.q_head_stride();
  memory.out.assign(request.n_tokens * request.out_token_stride() + 1, kUntouched);
  args.out = memory.out.data();
  args.out_token_stride = request.out_token_stride();
  args.out_head_stride = request.out_head_stride();
  args.n_tokens = request.n_tokens;
  args.scale = request.scale;
  args.softcap = request.softcap;
  args.mask_slopes = request.slopes.empty() ? nullptr : request.slopes.data();
  args.sinks = request.sinks.empty() ? nullptr : request.sinks.data();
  args.segments = request.segments;
  args.record = request.record;
  args.commit = request.commit;
  args.commit_from = request.commit_from;
  if (request.mask_type == Mask::Type::none) return args;

  const size_t columns = request.mask_cells + kMaskGap;
  const bool half = request.mask_type == Mask::Type::f16;
  memory.mask_f32.assign(half ? 0 : request.n_tokens * columns, 0.0f);
  memory.mask_f16.assign(half ? request.n_tokens * columns : 0, 0);
  for (uint32_t t = 0; t < request.n_tokens; ++t) {
    for (uint32_t cell = 0; cell < request.mask_cells; ++cell) {
      const float value = request.mask[size_t{t} * request.mask_cells + cell];
      if (half)
        memory.mask_f16[t * columns + cell] = to_half(value);
      else
        memory.mask_f32[t * columns + cell] = value;
    }
  }
  args.mask.type = request.mask_type;
  args.mask.data = half ? static_cast<const void*>(memory.mask_f16.data()) : memory.mask_f32.data();
  args.mask.row_stride_bytes = columns * (half ? sizeof(uint16_t) : sizeof(float));
  args.mask.n_cells = request.mask_cells;
  return args;
}

/// Rows without their gaps; a written gap fails the test.
std::vector<float> compact(const Request& request, const std::vector<float>& out) {
  std::vector<float> rows;
  std::vector<bool> inside(out.size(), false);
  for (uint32_t t = 0; t < request.n_tokens; ++t)
    for (uint32_t h = 0; h < request.shape.n_heads; ++h)
      for (uint32_t c = 0; c < request.shape.head_dim_v; ++c) {
        const size_t at = t * request.out_token_stride() + h * request.out_head_stride() + c;
        rows.push_back(out[at]);
        inside[at] = true;
      }
  for (size_t i = 0; i < out.size(); ++i)
    if (!inside[i] && out[i] != kUntouched) {
      ADD_FAILURE() << "float " << i << " of out is outside of every row and was written";
      break;
    }
  return rows;
}

}  // namespace

Request::Request(const LayerShape& shape_, uint32_t n_tokens_, Random& random, size_t gap_)
    : shape(shape_), n_tokens(n_tokens_), gap(gap_), scale(1.0f / std::sqrt(float(shape.head_dim_k))) {
  q = random.normals(n_tokens * q_token_stride());
}

void Request::set_causal(Mask::Type type, uint32_t n_cells, uint32_t first_visible) {
  set_mask(type, n_cells, [=](uint32_t t, uint32_t cell) { return cell <= first_visible + t ? 0.0f : -kInfinity; });
}

float Request::mask_at(uint32_t token, Cell cell) const {
  if (mask_type == Mask::Type::none) return 0.0f;
  return cell < mask_cells ? mask[size_t{token} * mask_cells + cell] : -kInfinity;
}

std::vector<float> run(LayerCache& layer, const Request& request, uint32_t n_threads) {
  return run_together(layer, std::span(&request, 1), n_threads).front();
}

std::vector<std::vector<float>> run_together(LayerCache& layer, std::span<const Request> requests, uint32_t n_threads) {
  std::vector<Memory> memories(requests.size());
  std::vector<LayerAttendArgs> calls;
  for (size_t i = 0; i < requests.size(); ++i) calls.push_back(arguments(requests[i], memories[i]));
  Workspace workspace(n_threads, uint32_t(calls.size()));
  std::vector<std::string> errors(n_threads);
  const auto work = [&](uint32_t thread) {
    const Status status = calls.size() == 1 ? layer.attend(calls[0], workspace, thread, n_threads)
                                            : layer.attend(calls, workspace, thread, n_threads);
    if (!status) errors[thread] = status.message();
  };
  std::vector<std::thread> others;
  for (uint32_t thread = 1; thread < n_threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  std::vector<std::vector<float>> outs;
  for (size_t i = 0; i < requests.size(); ++i) outs.push_back(compact(requests[i], memories[i].out));
  return outs;
}

Status run_around(LayerCache& layer, const Request& request,
                  const std::function<Status(const std::function<Status()>&)>& around, std::vector<float>& out) {
  Memory memory;
  const LayerAttendArgs args = arguments(request, memory);
  Workspace workspace(1);
  const Status status = around([&] { return layer.attend(args, workspace); });
  if (status) out = compact(request, memory.out);
  return status;
}

std::vector<float> run_reference(const LayerCache& layer, const Request& request) {
  Memory memory;
  const LayerAttendArgs args = arguments(request, memory);
  const Status status = reference_attend(layer, args);
  EXPECT_TRUE(status.ok()) << status.message();
  return compact(request, memory.out);
}

void for_each_target(const std::function<void(const std::string& target)>& test) {
  const std::string before = simd_target();
  for (const std::string& target : simd_targets()) {
    const Status status = set_simd_target(target);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(simd_target(), target);
    test(target);
    if (testing::Test::HasFatalFailure()) break;
  }
  const Status status = set_simd_target(before);
  ASSERT_TRUE(status.ok()) << status.message();
}

std::vector<StoredToken> stored_tokens(const LayerCache& layer, const std::vector<SegmentId>& segments,
                                       uint32_t kv_head) {
  std::vector<StoredToken> tokens;
  for (const SegmentId segment : segments)
    for (StoredToken& token : layer.dump(segment, kv_head))
      if (token.tier != TokenTier::evicted) tokens.push_back(std::move(token));
  return tokens;
}

// Half the variance of a lo token's logit (src/codec/expected_error.hpp).
double error_made_up(const StoredToken& token, const float* q, double scale) {
  double variance = 0.0;
  for (size_t c = 0; c < token.k_error.size(); ++c) variance += std::pow(scale * q[c], 2) * token.k_error[c];
  return 0.5 * variance;
}

std::vector<double> weights(const std::vector<StoredToken>& tokens, const Request& request, uint32_t token,
                            uint32_t head) {
  const float* q = request.query(token, head);
  const double slope = request.slopes.empty() ? 1.0 : request.slopes[head];
  std::vector<double> logits;
  double highest = -kInfinity;
  for (const StoredToken& stored : tokens) {
    double dot = 0.0;
    for (size_t c = 0; c < stored.k.size(); ++c) dot += double(q[c]) * stored.k[c];
    double logit = request.scale * dot + error_made_up(stored, q, request.scale);
    if (request.softcap != 0.0f) logit = request.softcap * std::tanh(logit / request.softcap);
    const double mask = request.mask_at(token, stored.cell);
    logits.push_back(mask == -kInfinity ? -kInfinity : logit + slope * mask);
    highest = std::max(highest, logits.back());
  }
  if (highest == -kInfinity) return std::vector<double>(tokens.size(), 0.0);
  const double sink = request.sinks.empty() ? -kInfinity : double(request.sinks[head]);
  highest = std::max(highest, sink);
  double sum = std::exp(sink - highest);
  for (double& logit : logits) sum += logit = std::exp(logit - highest);
  for (double& weight : logits) weight /= sum;
  return logits;
}

constexpr double kIntegerRounding = 3.5 / (2 * 32639.0);

// The bound. u = 2^-24 is the rounding error of one operation, D the head dimension, n the number of tokens.
//
// Logit. A kernel sums D products in at least 4 lanes, so at most D/4 + 16 roundings are chained (16: reduction, scale,
// zero, centre, mask). It may split a key into zero + alpha * code and centre + rest, so what is rounded is not q.k but
// up to A = sum_c |q_c| * 3 max|k|. After a rotation sum|q'| is at most sqrt(D) |q|, by Cauchy-Schwarz, and k' is as if
// normally distributed with deviation |k| / sqrt(D), of which 5 are never exceeded: A = 3 * 5 |q| |k|. A balancer
// moves range between the two factors and changes A by a factor below 2 for our data. The error of a logit is then
// d = u ((D/4 + 16) scale * 2A + 4 (|softcap| + |slope * mask| + 8)), where 8 is for exp(), good to a few u, and the
// mask counts by its largest finite value. Weights have the relative error 2d (numerator and denominator), which
// reaches out_c as 2d sum_t w_t |v_tc|. Sum over tokens: n/16 + 64 chained roundings of terms up to w_t * 3 max|v_t|,
// or |v_t| where values are rotated.
//
// Kernels of integers ("avx512vnni", "avxvnni", "avx2", "neondot") round what meets codes to 16 bits, at most by h = 1
// / (2 * 32639) of the largest in its group (query) or its step (weight times alpha). Rounding errors are independent
// and uniform, so their weighted sum has the deviation h / sqrt(3) times the root of the sum of squares, of which 6 are
// never exceeded: 3.5 h. Logit: the codes' side is the key, at most 2 max|k| long after centring, and a balancer counts
// 2 as above, so the error is 3.5 h scale * max|q| * 4 max|k|_2, with max|q'| = 5 |q| / sqrt(D) after a rotation.
// Output: weights of a step are rounded by h times their largest, codes reach over at most 2 max|v|, so n tokens that
// are seen add 3.5 h max(w) * 2 max|v| sqrt(n), with max|v'| = 5 |v| / sqrt(D) after a rotation. Targets in single
// precision keep the bound without these two terms, and so do tokens in f16 on all targets. Hidden queries must give 0
// exactly, and do: their bound is 0.
Expected expect(const std::vector<std::vector<StoredToken>>& tokens, const Request& request, bool rotated) {
  const uint32_t dim_v = request.shape.head_dim_v, dim_k = request.shape.head_dim_k;
  double largest_mask = 0.0;
  for (const float x : request.mask)
    if (std::isfinite(x)) largest_mask = std::max(largest_mask, std::abs(double(x)));

  Expected expected;
  for (uint32_t t = 0; t < request.n_tokens; ++t) {
    for (uint32_t h = 0; h < request.shape.n_heads; ++h) {
      const std::vector<StoredToken>& stored = tokens[h / request.group()];
      double made_up = 0.0;
      for (const StoredToken& token : stored)
        made_up = std::max(made_up, error_made_up(token, request.query(t, h), request.scale));
      double highest_k = 0.0, longest_k = 0.0, sum_q = 0.0, square_q = 0.0, highest_q = 0.0;
      for (const StoredToken& token : stored) {
        double square = 0.0;
        for (const float x : token.k) highest_k = std::max(highest_k, std::abs(double(x))), square += double(x) * x;
        longest_k = std::max(longest_k, std::sqrt(square));
      }
      for (uint32_t c = 0; c < dim_k; ++c) {
        const double x = request.query(t, h)[c];
        sum_q += std::abs(x), square_q += x * x, highest_q = std::max(highest_q, std::abs(x));
      }
      if (rotated) highest_q = std::min(std::sqrt(square_q), 5.0 * std::sqrt(square_q / dim_k));
      const double reach = rotated ? 5.0 * std::sqrt(square_q) * longest_k : sum_q * highest_k;
      const double slope = request.slopes.empty() ? 1.0 : std::abs(request.slopes[h]);
      const double logit_error =
          kF32Epsilon * ((dim_k / 4.0 + 16.0) * std::abs(request.scale) * 6.0 * reach + (dim_k / 8.0 + 16.0) * made_up +
                         4.0 * (request.softcap + slope * largest_mask + 8.0));

      const double logit_error_of_integers =
          logit_error + kIntegerRounding * std::abs(request.scale) * highest_q * 4.0 * longest_k;

      const std::vector<double> w = weights(stored, request, t, h);
      std::vector<double> out(dim_v, 0.0), spread(dim_v, 0.0);
      double rounded = 0.0, highest_v = 0.0, highest_w = 0.0, n_seen = 0.0;
      for (size_t i = 0; i < stored.size(); ++i) {
        if (w[i] == 0.0) continue;
        double highest = 0.0, square = 0.0;
        for (uint32_t c = 0; c < dim_v; ++c) {
          const double x = stored[i].v[c];
          out[c] += w[i] * x;
          spread[c] += w[i] * std::abs(x);
          highest = std::max(highest, std::abs(x)), square += x * x;
        }
        rounded += w[i] * 3.0 * (rotated ? std::sqrt(square) : highest);
        highest_v =
            std::max(highest_v, rotated ? std::min(std::sqrt(square), 5.0 * std::sqrt(square / dim_v)) : highest);
        highest_w = std::max(highest_w, w[i]), n_seen += 1.0;
      }
      const double sum_error = kF32Epsilon * (double(stored.size()) / 16.0 + 64.0) * rounded;
      const double weight_error = kIntegerRounding * highest_w * 2.0 * highest_v * std::sqrt(n_seen);
      for (uint32_t c = 0; c < dim_v; ++c) {
        expected.out.push_back(out[c]);
        expected.bound.push_back(2.0 * logit_error * spread[c] + sum_error);
        expected.bound_of_integers.push_back(2.0 * logit_error_of_integers * spread[c] + sum_error + weight_error);
      }
    }
  }
  return expected;
}

Expected expect(const LayerCache& layer, const std::vector<SegmentId>& segments, const Request& request) {
  std::vector<std::vector<StoredToken>> tokens;
  for (uint32_t head = 0; head < request.shape.n_kv_heads; ++head)
    tokens.push_back(stored_tokens(layer, segments, head));
  const Spec& spec = layer.spec();
  const auto in_codes = [](Format format) { return format != Format::f16 && format != Format::evict; };
  Expected expected = expect(tokens, request, spec.hadamard);
  if (!in_codes(spec.hi) && !in_codes(spec.lo)) expected.bound_of_integers = expected.bound;
  return expected;
}

testing::AssertionResult matches(const std::vector<float>& out, const Expected& expected) {
  if (out.size() != expected.out.size())
    return testing::AssertionFailure() << out.size() << " elements instead of " << expected.out.size();
  const std::vector<double>& bound =
      attention::kernels().multiplies_integers ? expected.bound_of_integers : expected.bound;
  double worst = 0.0;
  size_t worst_at = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double error = std::abs(out[i] - expected.out[i]);
    const double share = error == 0.0 ? 0.0 : error / bound[i];  // x / 0 is infinity: any error is too much
    if (!(share <= worst)) worst = share, worst_at = i;
    if (!std::isfinite(out[i])) return testing::AssertionFailure() << "element " << i << " is " << out[i];
  }
  if (worst <= 1.0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "element " << worst_at << " is " << out[worst_at] << " instead of "
                                     << expected.out[worst_at] << ", " << worst << " times the bound of "
                                     << bound[worst_at];
}

}  // namespace mikv::test
