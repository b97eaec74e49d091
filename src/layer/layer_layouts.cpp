#include "layer/layer_layouts.hpp"

#include <algorithm>
#include <string>

#include "policy/policy.hpp"

namespace mikv {

namespace {

Status check_shape(const LayerShape& shape) {
  const auto dim_ok = [](uint32_t dim) { return dim >= 8 && dim <= codec::kMaxHeadDim && dim % 8 == 0; };
  if (!dim_ok(shape.head_dim_k) || !dim_ok(shape.head_dim_v)) {
    return Error{ErrorCode::unsupported, "head dimension " + std::to_string(shape.head_dim_k) + "/" +
                                             std::to_string(shape.head_dim_v) +
                                             " is not supported; K and V need a multiple of 8 from 8 to 512"};
  }
  if (shape.n_kv_heads < 1 || shape.n_kv_heads > 256 || shape.n_heads % shape.n_kv_heads != 0) {
    return Error{ErrorCode::unsupported,
                 std::to_string(shape.n_heads) + " query heads on " + std::to_string(shape.n_kv_heads) +
                     " KV heads are not supported; use 1 to 256 KV heads and a multiple of them"};
  }
  const uint32_t group = shape.n_heads / shape.n_kv_heads;
  if (group < 1 || group > 16) {
    return Error{ErrorCode::unsupported,
                 std::to_string(group) + " query heads on one KV head are not supported; use 1 to 16"};
  }
  return {};
}

Status check_key_scales(const Spec& spec) {
  const bool codes_in_lo = spec.hi == Format::f16 && spec.lo != Format::evict && !spec.mixed();
  const bool as_they_are = !spec.needs_calibration() && !spec.hadamard && spec.balancer_file.empty();
  if (!spec.keys_by_channel || (codes_in_lo && as_they_are && spec.quantiser == Quantiser::asymmetric)) return {};
  return Error{ErrorCode::unsupported,
               "spec key keys=channel is of asymmetric codes in lo beside hi=f16, with outlier=none; leave it out"};
}

Status check_groups(const LayerShape& shape, const Spec& spec) {
  const bool grouped =
      spec.hi != Format::f16 || (spec.lo != Format::evict && policy::policy_of(spec.importance).demotes());
  const uint32_t n_outlier = n_outlier_channels(spec);
  if (n_outlier && (spec.mixed() || !grouped)) {
    return Error{ErrorCode::unsupported,
                 "spec key outlier=f16 is of uniform codes; leave it out, or choose another lo"};
  }
  for (const uint32_t dim : {shape.head_dim_k, shape.head_dim_v}) {
    if (dim <= n_outlier) {
      return Error{ErrorCode::unsupported, "spec key outlier=f16 takes " + std::to_string(n_outlier) +
                                               " channels of each head; heads of " + std::to_string(dim) +
                                               " have no others, so leave it out"};
    }
    if (!grouped || (spec.keys_by_channel && dim != shape.head_dim_v)) continue;  // keys=channel: groups are of V
    if (spec.group.resolve(dim - n_outlier) == 0) {
      return Error{"spec key group=" + std::to_string(spec.group.channels) + " does not divide the " +
                   std::to_string(dim - n_outlier) + " channels of a head" +
                   (n_outlier ? " that are no outliers" : "") + "; use auto, half, head or a divisor of it"};
    }
  }
  return {};
}

Status check_balancers(const LayerShape& shape, const Spec& spec, const codec::KeyBalancers& balancers) {
  if (spec.balancer_file.empty()) return {};
  const bool fits = balancers.size() == shape.n_kv_heads &&
                    std::all_of(balancers.begin(), balancers.end(),
                                [&](const auto& factors) { return factors.size() == shape.head_dim_k; });
  if (fits) return {};
  return Error{ErrorCode::mismatch, "spec key balancer: " + spec.balancer_file + " is not of " +
                                        std::to_string(shape.n_kv_heads) + " KV heads of " +
                                        std::to_string(shape.head_dim_k) +
                                        " channels: it is of another model; `mikv calibrate` writes one"};
}

// Ids of so many cells fit two bytes.
constexpr uint32_t kNarrowCells = 1u << 16;

}  // namespace

Status check_layer(const LayerShape& shape, const Spec& spec, const codec::KeyBalancers& balancers) {
  for (const Status& status : {check_shape(shape), check_key_scales(spec), check_groups(shape, spec),
                               check_balancers(shape, spec, balancers)}) {
    if (!status) return status;
  }
  return {};
}

tier::Layouts make_layouts(const LayerShape& shape, const Spec& spec, const tier::Positions& positions) {
  const uint32_t n_outlier = n_outlier_channels(spec), dim_k = shape.head_dim_k - n_outlier,
                 dim_v = shape.head_dim_v - n_outlier;
  // Staged keys in bytes are read in the groups of the tiers: with keys by channel they have one.
  const uint32_t group_k = spec.keys_by_channel ? dim_k : spec.group.resolve(dim_k),
                 group_v = spec.group.resolve(dim_v);
  // Scores and arrivals decide about demotion; a cache that demotes nothing has no use for them.
  const bool scored = policy::policy_of(spec.importance).demotes();
  const bool symmetric = spec.quantiser == Quantiser::symmetric;
  const auto uniform = [&](Format format) {
    return codec::BlockLayout::Uniform{
        // Bits that differ by head are known when its segment is frozen; what stands here until then is never filled.
        .bits = format_bits(format) ? format_bits(format) : format_bits(Format::int2),
        .dim_k = shape.head_dim_k,
        .dim_v = shape.head_dim_v,
        .group_k = group_k ? group_k : dim_k,
        .group_v = group_v ? group_v : dim_v,
        .id_bytes = positions.max_cells <= kNarrowCells ? 2u : 4u,
        .outlier_tiles = n_outlier / codec::kTileSide};
  };
  codec::BlockLayout::Uniform staged = uniform(Format::f16), hi = uniform(spec.hi), lo = uniform(spec.lo),
                              staged_bytes = uniform(Format::int8);
  staged.scored = hi.scored = staged_bytes.scored = scored;
  hi.symmetric = lo.symmetric = symmetric;
  lo.keys_by_channel = spec.keys_by_channel;
  return {codec::BlockLayout::make(staged),
          codec::BlockLayout::make(hi),
          codec::BlockLayout::make(lo),
          codec::BlockLayout::make(staged_bytes),
          spec.lo == Format::evict,
          shape.n_heads / shape.n_kv_heads,
          &positions,
          {}};
}

// Tiers of a segment share their groups: where hi is f16 and has none, it is read in lo's.
std::pair<uint32_t, uint32_t> tier_groups(const LayerShape& shape, const tier::Layouts& layouts) {
  const codec::BlockLayout& grouped = layouts.evict || layouts.hi.groups_k ? layouts.hi : layouts.lo;
  const bool groups_in_k = grouped.groups_k && !grouped.keys_by_channel;
  return {groups_in_k ? grouped.group_k : shape.head_dim_k, grouped.groups_v ? grouped.group_v : shape.head_dim_v};
}

}  // namespace mikv
