#include "attention_problem.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "check.hpp"
#include "random.hpp"

namespace mikv::cli {
namespace {

/// Lets the first token draw nearly all attention of the first `n_sinks` query heads of each group, as attention sinks
/// do (arXiv 2309.17453): the weights of all other tokens are small then, and a kernel may have a faster way for those.
void add_sinks(const llama::FlashAttnProblem& problem, uint32_t n_sinks, Content& content) {
  constexpr float kSinkLogit = 12.0f;  // of one key in N(0, 1): 24 times the other 4,096 together
  const LayerShape& shape = problem.shape;
  const uint32_t dim = shape.head_dim_k, group = shape.n_heads / shape.n_kv_heads;
  for (uint32_t row = 0; row < problem.n_queries * shape.n_heads; ++row) {
    const uint32_t head = row % shape.n_heads;
    if (head % group >= n_sinks) continue;
    const std::span key(&content.k[size_t(head / group) * dim], dim), query(&content.q[size_t(row) * dim], dim);
    const float square = std::inner_product(key.begin(), key.end(), key.begin(), 0.0f);
    for (uint32_t i = 0; i < dim; ++i) query[i] += kSinkLogit * std::sqrt(float(dim)) / square * key[i];
  }
}

}  // namespace

void check_queries(uint32_t n_queries, const std::vector<uint32_t>& n_tokens) {
  if (*std::ranges::min_element(n_tokens) >= n_queries) return;
  throw UserError(
      fmt::format("--queries {} are the last of the cached tokens; use --tokens {} or more", n_queries, n_queries));
}

uint32_t n_visible(const llama::FlashAttnProblem& problem, uint32_t window, uint32_t query) {
  const uint32_t end = problem.n_tokens - problem.n_queries + query + 1;
  return window ? std::min(end, window) : end;
}

Content make_content(const llama::FlashAttnProblem& problem, const ContentOptions& options) {
  Random random(options.seed);
  const auto gaussians = [&](size_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = random.gaussian();
    return values;
  };
  const size_t per_token = size_t(problem.shape.n_kv_heads) * problem.shape.head_dim_k;
  Content content;
  content.k = gaussians(problem.n_tokens * per_token);
  content.v = gaussians(problem.n_tokens * per_token);
  content.q = gaussians(size_t(problem.n_queries) * problem.shape.n_heads * problem.shape.head_dim_k);
  add_sinks(problem, options.n_sinks, content);
  constexpr uint16_t kSeen = 0, kHidden = 0xfc00;  // halves: 0 and minus infinity
  content.mask.assign(size_t(problem.n_queries) * problem.n_tokens, kSeen);
  for (uint32_t query = 0; query < problem.n_queries; ++query) {
    const auto row = content.mask.begin() + ptrdiff_t(size_t(query) * problem.n_tokens);
    const uint32_t end = problem.n_tokens - problem.n_queries + query + 1,
                   n_seen = n_visible(problem, options.window, query);
    std::fill(row, row + (end - n_seen), kHidden);
    std::fill(row + end, row + problem.n_tokens, kHidden);
  }
  return content;
}

AttendArgs make_args(const llama::FlashAttnProblem& problem, const Content& content, float* out) {
  const LayerShape& shape = problem.shape;
  AttendArgs args;
  args.q = content.q.data();
  args.q_token_stride = size_t(shape.n_heads) * shape.head_dim_k;
  args.q_head_stride = shape.head_dim_k;
  args.out = out;
  args.out_token_stride = size_t(shape.n_heads) * shape.head_dim_v;
  args.out_head_stride = shape.head_dim_v;
  args.n_tokens = problem.n_queries;
  args.scale = 1.0f / std::sqrt(float(shape.head_dim_k));
  args.mask = {Mask::Type::f16, content.mask.data(), problem.n_tokens * sizeof(uint16_t), problem.n_tokens};
  return args;
}

size_t output_size(const llama::FlashAttnProblem& problem) {
  return size_t(problem.n_queries) * problem.shape.n_heads * problem.shape.head_dim_v;
}

FilledContext::FilledContext(const llama::FlashAttnProblem& problem, const Content& content, const Spec& spec,
                             uint32_t n_threads)
    : problem_(problem), content_(content) {
  ContextOptions options;
  options.spec = spec;
  options.unified = true;
  options.n_threads = n_threads;
  options.n_ubatch = problem.n_tokens;
  options.cells = &cells_;
  context_ = unwrap(Context::create(std::move(options)));
  for (uint32_t layer = 0; layer < problem.n_layers; ++layer) {
    check(context_->add_layer(int(layer), problem.shape, kMaxTokens));
  }
  const uint32_t n_before = problem.n_queries == 1 ? problem.n_tokens : problem.n_tokens - problem.n_queries;
  if (n_before > 0) {
    begin(n_before, false);
    std::vector<float> out(output_size(problem));
    AttendArgs one = make_args(problem, content, out.data());
    one.n_tokens = 1;
    for (uint32_t layer = 0; layer < problem.n_layers; ++layer) {
      store(layer);
      check(context_->attend(int(layer), {&one, 1}));  // importance, query statistics
    }
    check(context_->end_step());
    check(context_->compress());
  }
  begin(problem.n_queries, problem.n_queries == 1);
  for (uint32_t layer = 0; problem.n_queries > 1 && layer < problem.n_layers; ++layer) store(layer);
}

void FilledContext::begin(uint32_t n, bool generated) {
  Batch batch;
  batch.tokens.assign(n, Batch::Token{.sequence = 0, .output = generated});
  check(context_->begin_step(batch));
  n_tokens_ = n;
  first_ = next_;
  next_ += n;
}
void FilledContext::end() { check(context_->end_step()); }

void FilledContext::store(uint32_t layer) {
  std::vector<CellPlace>& cells = places_;
  cells.clear();
  for (uint32_t i = 0; i < n_tokens_; ++i) cells.push_back({0, first_ + i});
  const size_t row = size_t(problem_.shape.n_kv_heads) * problem_.shape.head_dim_k;
  const size_t at = size_t(first_) * row % content_.k.size();
  check(context_->store(int(layer), cells, &content_.k[at], row, &content_.v[at], row));
}

}  // namespace mikv::cli
