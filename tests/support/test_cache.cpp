#include "test_cache.hpp"

#include <algorithm>
#include <cctype>
#include <numeric>
#include <stdexcept>

namespace mikv::test {

Tokens::Tokens(const LayerShape& shape_, size_t n_, Random& random, size_t gap)
    : shape(shape_),
      n(n_),
      k_stride(size_t{shape.n_kv_heads} * shape.head_dim_k + gap),
      v_stride(size_t{shape.n_kv_heads} * shape.head_dim_v + gap),
      k(random.normals(n * k_stride)),
      v(random.normals(n * v_stride)) {}

std::unique_ptr<LayerCache> make_layer(const LayerShape& shape, std::string_view spec_text, uint32_t max_cells) {
  Result<Spec> spec = Spec::parse(spec_text);
  if (!spec) throw std::runtime_error(spec.message());
  Result<std::unique_ptr<LayerCache>> layer = LayerCache::create(shape, spec.value(), max_cells);
  if (!layer) throw std::runtime_error(layer.message());
  return std::move(layer).value();
}

std::vector<Cell> cell_range(Cell first, size_t n) {
  std::vector<Cell> cells(n);
  std::iota(cells.begin(), cells.end(), first);
  return cells;
}

void put(LayerCache& layer, SegmentId segment, std::span<const Cell> cells, const Tokens& tokens) {
  const Status status = layer.put(segment, cells, tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride);
  if (!status) throw std::runtime_error(status.message());
}

void commit(LayerCache& layer, SegmentId segment) {
  const Status status = layer.commit(segment);
  if (!status) throw std::runtime_error(status.message());
}

std::vector<StoredToken> sorted_dump(const LayerCache& layer, SegmentId segment, uint32_t kv_head) {
  std::vector<StoredToken> tokens = layer.dump(segment, kv_head);
  std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.cell < b.cell; });
  return tokens;
}

TierCounts count_tiers(const std::vector<StoredToken>& tokens) {
  TierCounts counts;
  for (const StoredToken& token : tokens) {
    switch (token.tier) {
      case TokenTier::staged: ++counts.staged; break;
      case TokenTier::hi: ++counts.hi; break;
      case TokenTier::lo: ++counts.lo; break;
      case TokenTier::evicted: ++counts.evicted; break;
    }
  }
  return counts;
}

std::string name_of_spec(const testing::TestParamInfo<const char*>& parameter) {
  std::string name(parameter.param);
  std::ranges::replace_if(name, [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace mikv::test
