#include "engine/flash_attn_bench.hpp"

#include <chrono>
#include <cmath>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace mikv::llama {

struct FlashAttnBench::Impl {
  FlashAttnProblem problem;
  ggml_type type = GGML_TYPE_F16;
  ggml_context* tensors = nullptr;
  ggml_backend_t backend = nullptr;
  ggml_backend_buffer_t buffer = nullptr;
  ggml_cgraph* graph = nullptr;
  ggml_tensor* q = nullptr;
  ggml_tensor* mask = nullptr;
  std::vector<ggml_tensor*> k, v, out;

  ~Impl() {
    ggml_backend_buffer_free(buffer);
    ggml_backend_free(backend);
    ggml_free(tensors);
  }

  /// A cache as llama.cpp stores it: a row of all heads for each token.
  ggml_tensor* new_cache() const {
    return ggml_new_tensor_2d(tensors, type, int64_t(problem.shape.head_dim_k) * problem.shape.n_kv_heads,
                              problem.n_tokens);
  }

  /// [head_dim, n_tokens, n_kv_heads], a view.
  ggml_tensor* by_head(ggml_tensor* cache) const {
    const int64_t head_dim = problem.shape.head_dim_k;
    return ggml_view_3d(tensors, cache, head_dim, problem.n_tokens, problem.shape.n_kv_heads, cache->nb[1],
                        ggml_row_size(type, head_dim), 0);
  }

  void build_graph() {
    const int64_t head_dim = problem.shape.head_dim_k;
    graph = ggml_new_graph(tensors);
    q = ggml_new_tensor_3d(tensors, GGML_TYPE_F32, head_dim, problem.shape.n_heads, problem.n_queries);
    mask = ggml_new_tensor_2d(tensors, GGML_TYPE_F16, problem.n_tokens, problem.n_queries);
    ggml_tensor* by_query = ggml_permute(tensors, q, 0, 2, 1, 3);
    for (uint32_t layer = 0; layer < problem.n_layers; ++layer) {
      k.push_back(new_cache());
      v.push_back(new_cache());
      out.push_back(ggml_flash_attn_ext(tensors, by_query, by_head(k.back()), by_head(v.back()), mask,
                                        1.0f / std::sqrt(float(head_dim)), 0.0f, 0.0f));
      ggml_prec_set_acc(out.back(), GGML_PREC_F32);  // as llama.cpp asks for
      ggml_build_forward_expand(graph, out.back());
    }
  }

  void fill(ggml_tensor* cache, std::span<const float> rows) const {
    std::vector<uint8_t> stored(ggml_nbytes(cache));
    ggml_quantize_chunk(type, rows.data(), stored.data(), 0, cache->ne[1], cache->ne[0], nullptr);
    ggml_backend_tensor_set(cache, stored.data(), 0, stored.size());
  }
};

FlashAttnBench::FlashAttnBench(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FlashAttnBench::~FlashAttnBench() = default;

Result<std::unique_ptr<FlashAttnBench>> FlashAttnBench::create(const FlashAttnProblem& problem, int stock_type,
                                                               std::span<const float> k, std::span<const float> v,
                                                               std::span<const uint16_t> mask) {
  auto impl = std::make_unique<Impl>();
  impl->problem = problem;
  impl->type = ggml_type(stock_type);
  if (problem.shape.head_dim_k % uint64_t(ggml_blck_size(impl->type)) != 0) {
    return Error{std::string("llama:") + ggml_type_name(impl->type) + " stores blocks of " +
                 std::to_string(ggml_blck_size(impl->type)) + " channels, which do not divide a head of " +
                 std::to_string(problem.shape.head_dim_k)};
  }
  // Headers only: the data is allocated by the backend. 16 tensors a layer is more than are made.
  const size_t n_tensors = 16 * size_t(problem.n_layers) + 16;
  impl->tensors = ggml_init({n_tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
  impl->build_graph();
  impl->backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(impl->backend, int(problem.n_threads));
  impl->buffer = ggml_backend_alloc_ctx_tensors(impl->tensors, impl->backend);
  if (!impl->buffer) return Error{"not enough memory for llama.cpp's caches; use fewer --tokens or --layers"};
  for (uint32_t layer = 0; layer < problem.n_layers; ++layer) {
    impl->fill(impl->k[layer], k);
    impl->fill(impl->v[layer], v);
  }
  ggml_backend_tensor_set(impl->mask, mask.data(), 0, mask.size_bytes());
  return std::unique_ptr<FlashAttnBench>(new FlashAttnBench(std::move(impl)));
}

void FlashAttnBench::set_query(std::span<const float> q) {
  ggml_backend_tensor_set(impl_->q, q.data(), 0, q.size_bytes());
}

double FlashAttnBench::run() {
  const auto start = std::chrono::steady_clock::now();
  ggml_backend_graph_compute(impl_->backend, impl_->graph);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<float> FlashAttnBench::output() const {
  // ggml's result is [head_dim, n_heads, n_queries]: our order already.
  const ggml_tensor* out = impl_->out.back();
  std::vector<float> values(size_t(ggml_nelements(out)));
  ggml_backend_tensor_get(out, values.data(), 0, values.size() * sizeof(float));
  return values;
}

uint64_t FlashAttnBench::cache_bytes() const { return ggml_nbytes(impl_->k.front()) + ggml_nbytes(impl_->v.front()); }

}  // namespace mikv::llama
