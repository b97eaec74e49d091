// The loop of an engine: two sequences with a shared prefix, threads, a budget, and a session file.
//   c++ -std=c++20 engine_loop.cpp $(pkg-config --cflags --libs mikv) -pthread
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "mikv/mikv.hpp"

namespace {

constexpr int kLayers = 2;
constexpr uint32_t kThreads = 2;
constexpr mikv::LayerShape kShape{.n_heads = 8, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64};
constexpr size_t kHeadDim = 64, kKvRow = 2 * kHeadDim, kQueryRow = 8 * kHeadDim;

void check(const mikv::Status& status, const char* what) {
  if (status) return;
  std::fprintf(stderr, "engine_loop: %s: %s (%s)\n", what, status.message().c_str(), mikv::error_name(status.code()));
  std::exit(1);
}

// Stands for a layer's projections: rows for the tokens of a batch, by their positions.
std::vector<float> project(const mikv::Batch& batch, int layer, size_t row, float seed) {
  std::vector<float> data;
  for (const auto& token : batch.tokens) {
    for (size_t c = 0; c < row; ++c)
      data.push_back(std::sin(seed + 0.9f * float(c) + 0.1f * float(token.position + layer)));
  }
  return data;
}

// RoPE: channels i and i + 32 of a head turn by angle i per position. The context is told the same angles.
mikv::Rope rope() {
  mikv::Rope of;
  for (size_t i = 0; i < kHeadDim / 2; ++i) of.angles.push_back(float(std::pow(10000.0, -2.0 * double(i) / kHeadDim)));
  return of;
}

void rotate(std::vector<float>& rows, const mikv::Batch& batch, size_t row) {
  static const mikv::Rope of = rope();
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    for (size_t head = t * row; head < (t + 1) * row; head += kHeadDim) {
      for (size_t i = 0; i < kHeadDim / 2; ++i) {
        const float angle = of.angles[i] * float(batch.tokens[t].position), c = std::cos(angle), s = std::sin(angle);
        float &a = rows[head + i], &b = rows[head + i + kHeadDim / 2];
        const float x = a, y = b;
        a = x * c - y * s;
        b = x * s + y * c;
      }
    }
  }
}

// One step of the model. A unified context takes all of a step's tokens in one call, in the order of the batch.
mikv::Status decode(mikv::Context& cache, const mikv::Batch& batch) {
  if (const mikv::Status planned = cache.begin_step(batch); !planned) return planned;
  const auto n = uint32_t(batch.tokens.size());
  for (int layer = 0; layer < kLayers; ++layer) {
    auto k = project(batch, layer, kKvRow, 1), q = project(batch, layer, kQueryRow, 3);
    const auto v = project(batch, layer, kKvRow, 2);
    rotate(k, batch, kKvRow);
    rotate(q, batch, kQueryRow);
    std::vector<float> out(n * kQueryRow);
    (void)cache.store(layer, {}, k.data(), kKvRow, v.data(), kKvRow, n);  // by one thread
    mikv::AttendArgs args;
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = kQueryRow;
    args.q_head_stride = args.out_head_stride = kHeadDim;
    args.n_tokens = n;
    args.scale = 0.125f;
    std::vector<std::jthread> helpers;  // an engine has a pool; each thread calls with its own number
    for (uint32_t t = 1; t < kThreads; ++t) {
      helpers.emplace_back([&, t] { (void)cache.attend(layer, {&args, 1}, t, kThreads); });
    }
    (void)cache.attend(layer, {&args, 1}, 0, kThreads);
  }
  return cache.end_step();  // the first error of the step
}

mikv::Batch tokens(const mikv::Context& cache, mikv::SequenceId sequence, int n) {
  mikv::Batch batch;
  const mikv::Position first = cache.last_position(sequence) + 1;
  for (int i = 0; i < n; ++i) batch.tokens.push_back({sequence, i + 1 == n, first + i});
  return batch;
}

void print_size(const mikv::Context& cache, const char* when) {
  const mikv::MemoryUsage usage = cache.memory_usage();
  std::printf("%-34s %9s, %5.2f bits per element\n", when, mikv::format_bytes(double(usage.total())).c_str(),
              usage.bits_per_element());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string file = argc > 1 ? argv[1] : "engine_loop.session";
  const auto spec = mikv::Spec::parse("mikv");
  if (!spec) return 1;
  mikv::ContextOptions options;
  options.spec = spec.value();
  options.n_sequences = 2;
  options.unified = true;  // sequences share prefixes
  options.n_threads = kThreads;
  options.log = [](const std::string& line) { std::printf("  %s\n", line.c_str()); };
  const auto created = mikv::Context::create(options), other = mikv::Context::create(options);
  if (!created || !other) return 1;
  mikv::Context& cache = *created.value();
  for (mikv::Context* context : {&cache, other.value().get()}) {
    for (int layer = 0; layer < kLayers; ++layer) {
      check(context->add_layer(layer, kShape), "add_layer");
      check(context->set_rope(layer, rope()), "set_rope");
    }
  }

  check(decode(cache, tokens(cache, 0, 400)), "the prompt");
  check(decode(cache, tokens(cache, 0, 1)), "its first token");
  print_size(cache, "one sequence");
  check(cache.copy(0, 1), "copy");  // stored once
  print_size(cache, "two, with the same prefix");
  for (int i = 0; i < 20; ++i) {
    mikv::Batch both = tokens(cache, 0, 1);
    both.tokens.push_back(tokens(cache, 1, 1).tokens[0]);
    check(decode(cache, both), "a token of each");
  }
  print_size(cache, "20 tokens later");

  // A session: saved by one context, continued by another.
  const auto saved = cache.save(0);
  if (!saved) check(saved.error(), "save");
  check(mikv::write_file(file, saved.value()), "write_file");
  const auto read = mikv::read_file(file);
  if (!read) check(read.error(), "read_file");
  check(other.value()->load(0, read.value()), "load");
  check(decode(*other.value(), tokens(*other.value(), 0, 1)), "a token after loading");
  std::remove(file.c_str());

  // A budget: the context gives up quality first, then refuses; the engine ends a sequence and continues.
  cache.set_budget(cache.memory_usage().total() + (32 << 10));
  mikv::Status status;
  int n_steps = 0;
  for (; status && n_steps < 2000; ++n_steps) status = decode(cache, tokens(cache, 1, 8));
  std::printf("after %d steps: %s\n", n_steps, mikv::error_name(status.code()));
  if (status.code() != mikv::ErrorCode::over_budget) return 1;
  check(cache.remove(1), "remove");
  check(decode(cache, tokens(cache, 0, 1)), "a token once there is room");
  print_size(cache, "the other sequence continues");
  return 0;
}
