#include "mikv/estimate.hpp"

#include <algorithm>
#include <map>
#include <new>
#include <random>
#include <tuple>
#include <vector>

#include "mikv/context.hpp"
#include "mikv/rising_cells.hpp"

namespace mikv {
namespace {

// Tokens that are stored at once.
constexpr uint32_t kChunk = 512;

Result<MeasuredLayer> measure(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells,
                              const std::function<void()>& before_step) {
  RisingCells table;
  ContextOptions options;
  options.spec = spec;
  if (!spec.balancer_file.empty()) {  // one of each prompt takes the same bytes
    options.spec.balancer = true;
    options.spec.balancer_file.clear();
  }
  options.n_ubatch = kChunk;
  options.cells = &table;
  const auto created = Context::create(std::move(options));
  if (!created) return created.error();
  Context& context = *created.value();
  const uint64_t most_cells = std::min<uint64_t>(std::max<uint64_t>(n_cells, uint64_t{n_tokens} + 1), kMaxCells);
  if (const Status added = context.add_layer(0, shape, uint32_t(most_cells)); !added) return added.error();

  std::mt19937 random(1);
  std::normal_distribution<float> gaussian;
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  std::vector<float> k(kChunk * k_row), v(kChunk * v_row);
  for (float& x : k) x = gaussian(random);
  for (float& x : v) x = gaussian(random);

  MeasuredLayer size;
  std::vector<CellPlace> cells;
  const auto step = [&](uint32_t first, uint32_t n, bool output) -> Status {
    Batch batch;
    cells.clear();
    for (uint32_t i = 0; i < n; ++i) {
      batch.tokens.push_back({.sequence = 0, .output = output && i + 1 == n});
      cells.push_back({0, first + i});
    }
    if (const Status begun = context.begin_step(batch); !begun) return begun;
    if (const Status stored = context.store(0, cells, k.data(), k_row, v.data(), v_row); !stored) return stored;
    size.peak_bytes = std::max(size.peak_bytes, context.memory_usage().total());
    return context.end_step();
  };
  for (uint32_t first = 0; first < n_tokens; first += kChunk) {
    if (before_step) before_step();
    const Status read = step(first, std::min(kChunk, n_tokens - first), false);
    if (!read) return read.error();
  }
  if (const Status ended = step(n_tokens, 1, true); !ended) return ended.error();  // the token that ends the prompt
  size.held = context.memory_usage();
  return size;
}

Result<CacheBytes> estimate_layer(const LayerLoad& layer, const Spec& spec, uint32_t n_measured,
                                  const std::function<void()>& before_step) {
  const uint64_t n_tokens = layer.n_tokens;
  const uint32_t most = uint32_t(std::min<uint64_t>(n_tokens, n_measured));
  const auto measured = measure(layer.shape, spec, most, n_tokens, before_step);
  if (!measured) return measured.error();
  const CacheBytes whole{double(measured.value().held.total()), double(measured.value().peak_bytes)};
  if (n_tokens == most) return whole;
  const auto half = measure(layer.shape, spec, n_measured / 2, n_tokens, before_step);
  if (!half) return half.error();
  const double more = double(n_tokens - most) / (n_measured / 2);
  const double held = whole.held + more * (whole.held - double(half.value().held.total()));
  if (spec.prefill != Prefill::streaming) {
    return CacheBytes{held, whole.prompt + more * (whole.prompt - double(half.value().peak_bytes))};
  }
  // A streamed prompt's wait is bounded: what is held grows, what waits does not.
  return CacheBytes{held, std::max(whole.prompt, held + (whole.prompt - whole.held))};
}

Error out_of_memory() { return Error::out_of_memory("out of memory for an estimate; estimate a shorter cache"); }

}  // namespace

Result<MeasuredLayer> measure_layer(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells,
                                    const std::function<void()>& before_step) {
  try {
    return measure(shape, spec, n_tokens, n_cells, before_step);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

Result<CacheBytes> estimate_cache(std::span<const LayerLoad> layers, const Spec& spec, uint32_t n_measured,
                                  const std::function<void()>& before_step) {
  if (n_measured < 2) return Error{"an estimate measures 2 tokens at least"};
  try {
    std::map<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint64_t>, std::pair<LayerLoad, uint32_t>> kinds;
    for (const LayerLoad& layer : layers) {
      const auto& [n_heads, n_kv_heads, head_dim_k, head_dim_v] = layer.shape;
      auto& [kind, n_layers] = kinds[{n_heads, n_kv_heads, head_dim_k, head_dim_v, layer.n_tokens}];
      kind = layer;
      ++n_layers;
    }
    CacheBytes sum;
    for (const auto& [key, kind] : kinds) {
      const auto bytes = estimate_layer(kind.first, spec, n_measured, before_step);
      if (!bytes) return bytes.error();
      sum.held += kind.second * bytes.value().held;
      sum.prompt += kind.second * bytes.value().prompt;
    }
    return sum;
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

}  // namespace mikv
