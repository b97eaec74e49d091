// The least that a program does with mikv: one layer, one prompt, one generated token.
//   c++ -std=c++20 minimal.cpp $(pkg-config --cflags --libs mikv)
#include <cmath>
#include <cstdio>
#include <vector>

#include "mikv/mikv.hpp"

namespace {

constexpr mikv::LayerShape kShape{.n_heads = 14, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64};

// Stands for a model: some keys, values and queries for n tokens.
std::vector<float> numbers(size_t n, float seed) {
  std::vector<float> data(n);
  for (size_t i = 0; i < n; ++i) data[i] = std::sin(seed + 0.7f * float(i));
  return data;
}

mikv::Status step(mikv::Context& cache, int n_tokens, std::vector<float>& out) {
  mikv::Batch batch;  // the tokens of sequence 0 that follow what it holds; logits of the last one are wanted
  const int first = cache.last_position(0) + 1;
  for (int i = 0; i < n_tokens; ++i) batch.tokens.push_back({0, i + 1 == n_tokens, first + i});
  const auto n = uint32_t(n_tokens);
  const size_t kv_row = 2 * 64, q_row = 14 * 64;
  const auto k = numbers(n * kv_row, 1), v = numbers(n * kv_row, 2), q = numbers(n * q_row, 3);
  out.resize(n * q_row);
  mikv::AttendArgs args;
  args.q = q.data();
  args.out = out.data();
  args.n_tokens = n;
  args.scale = 0.125f;
  args.q_token_stride = args.out_token_stride = q_row;
  args.q_head_stride = args.out_head_stride = 64;

  // [readme]
  // batch: tokens with their sequence and position. args: where q and out are. The engine computes k, v and q.
  if (const mikv::Status planned = cache.begin_step(batch); !planned) return planned;
  for (const int layer : cache.layers()) {
    (void)cache.store(layer, {}, k.data(), kv_row, v.data(), kv_row, n);
    (void)cache.attend(layer, {&args, 1});  // out = softmax(q k) v over all tiers
  }
  return cache.end_step();  // the first error of the step
  // [/readme]
}

int fail(const std::string& why) {
  std::fprintf(stderr, "minimal: %s\n", why.c_str());
  return 1;
}

}  // namespace

int main() {
  const auto spec = mikv::Spec::parse("mikv");
  if (!spec) return fail(spec.message());
  auto created = mikv::Context::create({.spec = spec.value(), .n_ubatch = 1000});
  if (!created) return fail(created.message());
  mikv::Context& cache = *created.value();
  if (const auto status = cache.add_layer(0, kShape); !status) return fail(status.message());

  std::vector<float> out;
  for (const int n_tokens : {1000, 1}) {  // a prompt, which the token that follows compresses
    if (const auto status = step(cache, n_tokens, out); !status) return fail(status.message());
    const mikv::MemoryUsage usage = cache.memory_usage();
    std::printf("%4d tokens more: %s, %.2f bits per element\n", n_tokens,
                mikv::format_bytes(double(usage.total())).c_str(), usage.bits_per_element());
  }
  return cache.memory_usage().bits_per_element() < 4.0 && std::isfinite(out[0]) ? 0 : fail("it is not compressed");
}
