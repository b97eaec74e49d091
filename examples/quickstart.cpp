#include "mikv/mikv.hpp"
int main() {
  const uint32_t n = 1000, heads = 12, kv_heads = 2, dim = 128;
  std::vector<float> k(n * kv_heads * dim, 0.25f), v(k), q(heads * dim, 0.5f), out(q);
  std::vector<mikv::Cell> cells;  // the engine's own numbers for the tokens
  for (uint32_t i = 0; i < n; ++i) cells.push_back(i);
  auto layer = mikv::LayerCache::create({heads, kv_heads, dim, dim}, mikv::Spec::parse("mikv").value()).value();
  mikv::Workspace scratch(1);
  mikv::AttendArgs step{q.data(), heads * dim, dim, out.data(), heads * dim, dim, 1, 0.088f};
  const bool stored =
      layer->put(0, cells, k.data(), kv_heads * dim, v.data(), kv_heads * dim).ok() && layer->commit(0).ok();
  return stored && layer->attend(step, scratch).ok() && layer->memory_usage().bits_per_element() < 4.5 ? 0 : 1;
}
