// The oracle: attention as the formula reads, one query and one token at a time, in double precision. Slow on purpose.
#include <cmath>
#include <limits>

#include "codec/fp16.hpp"
#include "layer/layer_impl.hpp"

namespace mikv {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

double mask_value(const Mask& mask, uint32_t token, Cell cell) {
  if (mask.type == Mask::Type::none) return 0.0;
  if (cell >= mask.n_cells) return kHidden;
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + token * mask.row_stride_bytes;
  if (mask.type == Mask::Type::f32) return reinterpret_cast<const float*>(row)[cell];
  return codec::f16_to_f32(reinterpret_cast<const uint16_t*>(row)[cell]);
}

void attend_row(const std::vector<StoredToken>& tokens, const LayerAttendArgs& args, const LayerShape& shape,
                uint32_t t, uint32_t head) {
  const float* q = args.q + t * args.q_token_stride + head * args.q_head_stride;
  const double slope = args.mask_slopes ? args.mask_slopes[head] : 1.0;
  std::vector<double> logits;
  double max = kHidden;
  for (const StoredToken& token : tokens) {
    const double mask = mask_value(args.mask, t, token.cell);
    double logit = kHidden;
    if (token.tier != TokenTier::evicted && mask != kHidden) {
      logit = 0.0;
      for (uint32_t c = 0; c < shape.head_dim_k; ++c) logit += double(q[c]) * token.k[c];
      logit *= args.scale;
      for (size_t c = 0; c < token.k_error.size(); ++c) {  // codec/expected_error.hpp
        logit += 0.5 * std::pow(double(q[c]) * args.scale, 2) * token.k_error[c];
      }
      if (args.softcap > 0.0f) logit = args.softcap * std::tanh(logit / args.softcap);
      logit += slope * mask;
    }
    logits.push_back(logit);
    max = std::max(max, logit);
  }
  std::vector<double> out(shape.head_dim_v, 0.0);
  if (max > kHidden) {
    double sum = args.sinks ? std::exp(args.sinks[head] - max) : 0.0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (logits[i] == kHidden) continue;
      const double weight = std::exp(logits[i] - max);
      sum += weight;
      for (uint32_t c = 0; c < shape.head_dim_v; ++c) out[c] += weight * tokens[i].v[c];
    }
    for (double& x : out) x /= sum;
  }
  float* to = args.out + t * args.out_token_stride + head * args.out_head_stride;
  for (uint32_t c = 0; c < shape.head_dim_v; ++c) to[c] = float(out[c]);
}

}  // namespace

Status reference_attend(const LayerCache& cache, const LayerAttendArgs& args) {
  const LayerShape& shape = cache.shape();
  const uint32_t group = shape.n_heads / shape.n_kv_heads;
  std::vector<SegmentId> segments(args.segments.begin(), args.segments.end());
  if (segments.empty()) {
    for (SegmentId id = 0; id < kMaxSegments; ++id) segments.push_back(id);
  }
  for (uint32_t kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head) {
    std::vector<StoredToken> tokens;
    for (const SegmentId segment : segments) {
      for (StoredToken& token : cache.dump(segment, kv_head)) tokens.push_back(std::move(token));
    }
    for (uint32_t t = 0; t < args.n_tokens; ++t) {
      for (uint32_t g = 0; g < group; ++g) attend_row(tokens, args, shape, t, kv_head * group + g);
    }
  }
  return {};
}

}  // namespace mikv
