#include "cache_size.hpp"

#include <algorithm>
#include <random>
#include <vector>

#include "rising_cells.hpp"

namespace mikv::llama {

Result<CacheSize> measure_cache(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells,
                                const std::function<void()>& before_step) {
  RisingCells table;
  ContextOptions options;
  options.spec = spec;
  options.n_ubatch = kMeasuredChunk;
  options.cells = &table;
  const auto created = Context::create(std::move(options));
  if (!created) return created.error();
  Context& context = *created.value();
  const uint64_t most_cells = std::min<uint64_t>(std::max<uint64_t>(n_cells, n_tokens + 1), kMaxCells);
  if (const Status added = context.add_layer(0, shape, uint32_t(most_cells)); !added) return added.error();

  std::mt19937 random(1);
  std::normal_distribution<float> gaussian;
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  std::vector<float> k(kMeasuredChunk * k_row), v(kMeasuredChunk * v_row);
  for (float& x : k) x = gaussian(random);
  for (float& x : v) x = gaussian(random);

  CacheSize size;
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
  for (uint32_t first = 0; first < n_tokens; first += kMeasuredChunk) {
    if (before_step) before_step();
    const Status read = step(first, std::min(kMeasuredChunk, n_tokens - first), false);
    if (!read) return read.error();
  }
  if (const Status ended = step(n_tokens, 1, true); !ended) return ended.error();  // the token that ends the prompt
  size.held = context.memory_usage();
  return size;
}

Result<CacheBytes> estimate_cache(const LayerShape& shape, const Spec& spec, uint64_t n_tokens, uint32_t n_measured,
                                  const std::function<void()>& before_step) {
  const uint32_t most = uint32_t(std::min<uint64_t>(n_tokens, n_measured));
  const auto measured = measure_cache(shape, spec, most, n_tokens, before_step);
  if (!measured) return measured.error();
  const CacheBytes whole{double(measured.value().held.total()), double(measured.value().peak_bytes)};
  if (n_tokens == most) return whole;
  const auto half = measure_cache(shape, spec, n_measured / 2, n_tokens, before_step);
  if (!half) return half.error();
  const double more = double(n_tokens - most) / (n_measured / 2);
  const double held = whole.held + more * (whole.held - double(half.value().held.total()));
  if (spec.prefill == Prefill::exact) {
    return CacheBytes{held, whole.prompt + more * (whole.prompt - double(half.value().peak_bytes))};
  }
  // A streamed prompt's wait is bounded: what is held grows, what waits does not.
  return CacheBytes{held, std::max(whole.prompt, held + (whole.prompt - whole.held))};
}

}  // namespace mikv::llama
