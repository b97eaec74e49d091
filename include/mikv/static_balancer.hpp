// Static balancers: factors of the channels of keys that are measured on a text once, and read from a file by specs
// with balancer=FILE. The balancer of outlier=balancer is computed from each prompt instead.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mikv/context.hpp"
#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// The largest magnitudes that the channels of a KV head have had, [head_dim_k] each: of keys, and of the queries of
/// all query heads that meet them.
struct HeadMaxima {
  std::vector<float> q, k;
};
/// By layer, of its KV heads.
using ChannelMaxima = std::map<int, std::vector<HeadMaxima>>;

/// [n_kv_heads][head_dim_k] positive factors, by layer.
using StaticBalancers = std::map<int, std::vector<std::vector<float>>>;

/// Adds the text that a context holds, before any of it is compressed. Queries of the first 223 tokens are not counted.
/// Slow. Errors: a spec that records no queries (use mikv-paper), fewer tokens, or compressed ones; another shape.
MIKV_API Status add_maxima(const Context& context, ChannelMaxima& maxima);

/// b = sqrt(max|q| / max|k|) for each channel: Eq. 2 of MiKV over all of the text, and SmoothQuant's factor (arXiv
/// 2211.10438, Eq. 4 with alpha = 0.5) with queries in the place of weights.
MIKV_API StaticBalancers balancers_of(const ChannelMaxima& maxima);

/// Writes a text file (docs/file-format.md); it exists whole or not at all. Errors: io.
MIKV_API Status write_static_balancers(const std::string& path, const StaticBalancers& balancers);
/// Errors: io; damaged_data, with the line.
MIKV_API Result<StaticBalancers> read_static_balancers(const std::string& path);

}  // namespace mikv
