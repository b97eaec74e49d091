// What the shape of a layer and a spec make together: whether they fit, and the layouts of the tiers.
#pragma once

#include <cstdint>
#include <utility>

#include "codec/transform.hpp"
#include "layer/layer_cache.hpp"
#include "tier/layouts.hpp"

namespace mikv {

/// Error: a shape that no kernel has, a spec that has no place in such heads, balancers of another shape.
Status check_layer(const LayerShape& shape, const Spec& spec, const codec::KeyBalancers& balancers);

/// Channels of K and of V that hi and lo hold as halves, before those of groups.
inline uint32_t n_outlier_channels(const Spec& spec) { return spec.outlier_channels ? codec::kTileSide : 0; }

/// Layouts of a layer's tiers under a spec, for a shape that check_layer() takes.
tier::Layouts make_layouts(const LayerShape& shape, const Spec& spec, const tier::Positions& positions);

/// Channels of K and of V that share a scale in hi and lo: all that may have one if neither has scales.
std::pair<uint32_t, uint32_t> tier_groups(const LayerShape& shape, const tier::Layouts& layouts);

}  // namespace mikv
