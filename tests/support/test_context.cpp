#include "test_context.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace mikv::test {
namespace {

// A number of [-1, 1) that depends on all of its arguments.
float noise(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  uint64_t x = a * 0x9e3779b97f4a7c15u ^ b * 0xbf58476d1ce4e5b9u ^ c * 0x94d049bb133111ebu ^ d * 0xd6e8feb86659fd93u;
  x ^= x >> 31;
  x *= 0x7fb5d329728ea185u;
  x ^= x >> 27;
  return float(int64_t(x >> 11)) / float(int64_t{1} << 52) - 1.0f;
}

enum Kind : uint64_t { kKey = 1, kValue, kQuery };

std::vector<float> rows(Kind kind, int layer, const Batch& batch, uint32_t n_channels) {
  std::vector<float> data;
  for (const Batch::Token& token : batch.tokens) {
    for (uint32_t c = 0; c < n_channels; ++c) {
      // Sequences with the same text have the same keys: what they hold is told by positions alone.
      data.push_back(noise(kind, uint64_t(layer), uint64_t(token.position), c) + (c % 5 == 0 ? 1.5f : 0.0f));
    }
  }
  return data;
}

}  // namespace

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0.0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double(a[i]) - b[i]));
  return worst;
}

SmallEngine::SmallEngine(const Setup& setup) : setup_(setup) {
  ContextOptions options;
  options.spec = Spec::parse(setup.spec).value();
  options.n_sequences = setup.n_sequences;
  options.unified = setup.unified;
  options.n_cells = setup.n_cells;
  options.n_ubatch = setup.n_ubatch;
  options.n_threads = setup.n_threads;
  options.account = setup.account;
  options.model = "a small model";
  options.fingerprint = setup.fingerprint;
  options.log = [log = log_](const std::string& line) { log->push_back(line); };
  cache_ = Context::create(std::move(options)).value();
  Rope rope;
  for (uint32_t i = 0; i < kSmallShape.head_dim_k / 2; ++i) rope.angles.push_back(std::pow(100.0f, -float(i) / 8.0f));
  for (int layer = 0; layer < setup_.n_layers; ++layer) {
    EXPECT_TRUE(cache_->add_layer(layer, kSmallShape, 0, layer == 1 ? setup.window : 0).ok());
    EXPECT_TRUE(cache_->set_rope(layer, rope).ok());
  }
  if (setup.budget) cache_->set_budget(setup.budget);
}

Status SmallEngine::prompt(SequenceId sequence, uint32_t n) {
  for (uint32_t done = 0; done < n;) {
    const uint32_t more = std::min(setup_.n_ubatch, n - done);
    done += more;
    const Status status = step({{sequence, more, done == n ? Outputs::last : Outputs::none}});
    if (!status) return status;
  }
  return {};
}

// Tokens in the order in which they pass through the layers, and how many pass at once: as many of each sequence, where
// each has a stream of its own (llama.cpp's split_equal), else those that follow each other.
std::vector<uint32_t> SmallEngine::split(Batch& batch) const {
  const uint32_t n = uint32_t(batch.tokens.size()), n_at_once = setup_.n_at_once ? setup_.n_at_once : n;
  std::vector<uint32_t> sizes;
  if (setup_.unified || n <= n_at_once) {
    for (uint32_t first = 0; first < n; first += n_at_once) sizes.push_back(std::min(n_at_once, n - first));
    return sizes;
  }
  std::map<SequenceId, std::vector<Batch::Token>> left;
  for (const Batch::Token& token : batch.tokens) left[token.sequence].push_back(token);
  batch.tokens.clear();
  while (!left.empty()) {
    size_t each = std::max<size_t>(1, n_at_once / left.size());
    for (const auto& [sequence, tokens] : left) each = std::min(each, tokens.size());
    sizes.push_back(0);
    for (auto of = left.begin(); of != left.end() && sizes.back() < n_at_once;) {
      auto& tokens = of->second;
      batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.begin() + ptrdiff_t(each));
      tokens.erase(tokens.begin(), tokens.begin() + ptrdiff_t(each));
      sizes.back() += uint32_t(each);
      of = tokens.empty() ? left.erase(of) : std::next(of);
    }
  }
  return sizes;
}

Status SmallEngine::step(const std::vector<Part>& parts) {
  Batch batch;
  std::map<SequenceId, Position> next;
  for (const Part& part : parts) {
    auto [at, is_new] = next.try_emplace(part.sequence, cache_->last_position(part.sequence) + 1);
    for (uint32_t i = 0; i < part.n; ++i) {
      const bool wanted = part.outputs == Outputs::all || (part.outputs == Outputs::last && i + 1 == part.n);
      const bool punctuation = setup_.punctuation_every && at->second % setup_.punctuation_every == 0;
      batch.tokens.push_back({part.sequence, wanted, at->second++, punctuation});
    }
  }
  const std::vector<uint32_t> sizes = split(batch);
  if (const Status status = cache_->begin_step(batch); !status) return status;
  const uint32_t n = uint32_t(batch.tokens.size());
  const uint32_t k_row = kSmallShape.n_kv_heads * kSmallShape.head_dim_k;
  const uint32_t q_row = kSmallShape.n_heads * kSmallShape.head_dim_k;
  output_.assign(size_t(setup_.n_layers) * n * q_row, 0.0f);
  uint32_t first = 0;
  for (const uint32_t n_now : sizes) {
    Batch now;
    now.tokens.assign(batch.tokens.begin() + first, batch.tokens.begin() + first + n_now);
    // A stream per sequence attends by itself.
    std::map<uint32_t, std::vector<uint32_t>> streams;
    for (uint32_t i = 0; i < n_now; ++i) streams[setup_.unified ? 0 : uint32_t(now.tokens[i].sequence)].push_back(i);
    for (int layer = 0; layer < setup_.n_layers; ++layer) {
      const auto k = rows(kKey, layer, now, k_row), v = rows(kValue, layer, now, k_row);
      const auto q = rows(kQuery, layer, now, q_row);
      (void)cache_->store(layer, {}, k.data(), k_row, v.data(), k_row, n_now);
      std::vector<AttendArgs> calls;
      for (const auto& [stream, tokens] : streams) {
        AttendArgs args;
        args.q = q.data() + tokens.front() * q_row;
        args.q_token_stride = args.out_token_stride = q_row;
        args.q_head_stride = args.out_head_stride = kSmallShape.head_dim_k;
        args.out = output_.data() + (size_t(layer) * n + first + tokens.front()) * q_row;
        args.n_tokens = uint32_t(tokens.size());
        args.stream = stream;
        args.scale = 0.25f;
        calls.push_back(args);
      }
      (void)cache_->attend_all(layer, calls);
    }
    first += n_now;
  }
  return cache_->end_step();
}

std::vector<float> SmallEngine::peek(SequenceId sequence) {
  const Position at = cache_->last_position(sequence) + 1;
  EXPECT_TRUE(generate(sequence).ok());
  auto result = output_;
  EXPECT_TRUE(cache_->remove(sequence, at, -1).ok());
  return result;
}

}  // namespace mikv::test
