#include "cache_size.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include "check.hpp"
#include "interrupt.hpp"
#include "random.hpp"
#include "rising_cells.hpp"

namespace mikv::cli {
namespace {

/// Blocks of ggml have 32 codes; scales and minima are in f16.
constexpr std::pair<std::string_view, double> kStockBits[] = {{"f16", 16},
                                                              {"bf16", 16},
                                                              {"q8_0", 8 + 16 / 32.0},
                                                              {"q5_1", 5 + 32 / 32.0},
                                                              {"q5_0", 5 + 16 / 32.0},
                                                              {"q4_1", 4 + 32 / 32.0},
                                                              {"q4_0", 4 + 16 / 32.0},
                                                              {"iq4_nl", 4 + 16 / 32.0}};

}  // namespace

double stock_bits_per_element(const llama::KvChoice& choice) {
  std::string_view type = choice.name;
  type.remove_prefix(type.find(':') + 1);
  type = type.substr(0, type.find(':'));
  const auto found = std::ranges::find(kStockBits, type, [](const auto& known) { return known.first; });
  if (found == std::end(kStockBits))
    throw UserError(fmt::format("the size of {} is not known; leave it out", choice.name));
  return found->second;
}

CacheSize measure_cache(const LayerShape& shape, const Spec& spec, uint32_t n_tokens, uint64_t n_cells) {
  RisingCells table;
  ContextOptions options;
  options.spec = spec;
  options.n_ubatch = kMeasuredChunk;
  options.cells = &table;
  const auto context = unwrap(Context::create(std::move(options)));
  check(
      context->add_layer(0, shape, uint32_t(std::min<uint64_t>(std::max<uint64_t>(n_cells, n_tokens + 1), kMaxCells))));

  Random random(1);
  const size_t k_row = size_t{shape.n_kv_heads} * shape.head_dim_k, v_row = size_t{shape.n_kv_heads} * shape.head_dim_v;
  std::vector<float> k(kMeasuredChunk * k_row), v(kMeasuredChunk * v_row);
  for (float& x : k) x = random.gaussian();
  for (float& x : v) x = random.gaussian();

  CacheSize size;
  std::vector<CellPlace> cells;
  const auto step = [&](uint32_t first, uint32_t n, bool output) {
    Batch batch;
    cells.clear();
    for (uint32_t i = 0; i < n; ++i) {
      batch.tokens.push_back({.sequence = 0, .output = output && i + 1 == n});
      cells.push_back({0, first + i});
    }
    check(context->begin_step(batch));
    check(context->store(0, cells, k.data(), k_row, v.data(), v_row));
    size.peak_bytes = std::max(size.peak_bytes, context->memory_usage().total());
    check(context->end_step());
  };
  for (uint32_t first = 0; first < n_tokens; first += kMeasuredChunk) {
    throw_if_interrupted();
    step(first, std::min(kMeasuredChunk, n_tokens - first), false);
  }
  step(n_tokens, 1, true);  // the token that ends the prompt
  size.held = context->memory_usage();
  return size;
}

}  // namespace mikv::cli
