#include "graph/graph_rewrite.hpp"

#include <array>
#include <cstring>
#include <exception>
#include <set>
#include <string>

namespace mikv::llama {
namespace {

void run_op(ggml_tensor* node, int thread, int n_threads, void* user) {
  const OpData& op = *static_cast<const OpData*>(user);
  LayerTensors& layer = *op.binding->find_layer(op.layer);
  // ggml calls this from C: nothing may be thrown through it.
  try {
    if (op.kind == OpKind::attend) return op.binding->attend(layer, op, node, uint32_t(thread), uint32_t(n_threads));
    if (op.kind == OpKind::shift) return op.binding->shift(layer, op, node, uint32_t(thread), uint32_t(n_threads));
    if (thread == 0) op.binding->store(layer, op, node);
  } catch (const std::exception&) {
    op.binding->cache().fail(Error::out_of_memory("out of memory in a step of the KV cache"));
  }
}

using OpParams = std::array<char, GGML_MAX_OP_PARAMS>;

// The parameters of a custom operator, as ggml itself writes them: their layout is not public, a node that has them is.
OpParams custom_params(OpData& op) {
  std::array<char, 4096> memory;
  ggml_context* context = ggml_init({memory.size(), memory.data(), true});
  ggml_tensor* source = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
  const int n_tasks = op.kind == OpKind::attend || op.kind == OpKind::shift ? GGML_N_TASKS_MAX : 1;
  const ggml_tensor* custom = ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, &source, 1, run_op, n_tasks, &op);
  OpParams params;
  std::memcpy(params.data(), custom->op_params, params.size());
  ggml_free(context);
  return params;
}

void compute_here(ggml_backend_sched_t scheduler, ggml_tensor* node) {
  const int cpu = ggml_backend_sched_get_n_backends(scheduler) - 1;  // the CPU is always the last
  ggml_backend_sched_set_tensor_backend(scheduler, node, ggml_backend_sched_get_backend(scheduler, cpu));
}

void replace(ggml_backend_sched_t scheduler, ggml_tensor* node, OpData& op) {
  AttentionParams saved{};
  if (op.kind == OpKind::attend) std::memcpy(&saved, node->op_params, sizeof saved);
  const OpParams params = custom_params(op);
  std::memcpy(node->op_params, params.data(), params.size());
  std::memcpy(reinterpret_cast<char*>(node->op_params) + kSavedParams, &saved, sizeof saved);
  node->op = GGML_OP_CUSTOM;
  compute_here(scheduler, node);
}

bool is_view(ggml_op op) {
  return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
         op == GGML_OP_TRANSPOSE;
}

bool stores(const ggml_tensor* node) { return node->op == GGML_OP_SET_ROWS && cache_layer(node) >= 0; }
/// Keys rotated in place, from their first channel on, to other positions: the graph of a context shift.
bool shifts(const ggml_tensor* node) {
  return node->op == GGML_OP_ROPE && cache_layer(node) >= 0 && is_key_cache(node) && node->view_offs == 0 &&
         node->src[1]->type == GGML_TYPE_I32;
}
bool attends(const ggml_tensor* node) { return node->op == GGML_OP_FLASH_ATTN_EXT && cache_layer(node->src[1]) >= 0; }

// Any other operator on cache memory would read what was never written there.
bool touches_cache(const ggml_tensor* node) {
  if (is_view(node->op) || node->op == GGML_OP_CUSTOM) return false;
  if (cache_layer(node) >= 0) return true;
  for (const ggml_tensor* source : node->src) {
    if (source && cache_layer(source) >= 0) return true;
  }
  return false;
}

bool refuse(const ggml_tensor* node, Binding& binding) {
  const char* use = node->op == GGML_OP_MUL_MAT ? "attention other than flash attention" : ggml_op_name(node->op);
  binding.fail(std::string("this model or program needs ") + use +
               " on the KV cache, which mikv does not support; use --kv llama:f16");
  return false;
}

bool stores_floats(const ggml_tensor* node, Binding& binding) {
  const ggml_tensor* rows = node->src[0];
  if (rows->type == GGML_TYPE_F32 && rows->nb[0] == sizeof(float) && rows->ne[2] == 1 && rows->ne[3] == 1) return true;
  binding.fail("llama.cpp stores keys or values in a form that mikv does not know (" +
               std::string(ggml_type_name(rows->type)) + "); use the llama.cpp version that mikv is built for");
  return false;
}

}  // namespace

bool rewrite_graph(ggml_backend_sched_t scheduler, ggml_cgraph* graph, Binding& binding) {
  if (!binding.cache().failure()) return false;
  const int n_nodes = ggml_graph_n_nodes(graph);
  for (int i = 0; i < n_nodes; ++i) {
    const ggml_tensor* node = ggml_graph_node(graph, i);
    if (attends(node)) {
      if (!binding.layer_of_attention(node)) return false;
    } else if (shifts(node)) {
      if (const Status status = binding.cache().forget_removed(); !status) {
        binding.cache().fail(status.error());
        return false;
      }
    } else if (stores(node) ? !stores_floats(node, binding) : touches_cache(node) && !refuse(node, binding)) {
      return false;
    }
  }
  // Layers are known now, also those whose keys are stored before their attention is met.
  std::set<const LayerTensors*> half_stored;
  for (int i = 0; i < n_nodes; ++i) {
    ggml_tensor* node = ggml_graph_node(graph, i);
    if (!stores(node) && !attends(node) && !shifts(node)) continue;
    LayerTensors* layer = binding.find_layer(cache_layer(attends(node) ? node->src[1] : node));
    if (!layer) return refuse(node, binding);
    if (attends(node) && binding.engine_attends()) {
      binding.redirect(node);
      compute_here(scheduler, node);
      continue;
    }
    const OpKind kind = attends(node)        ? OpKind::attend
                        : shifts(node)       ? OpKind::shift
                        : is_key_cache(node) ? OpKind::store_k
                                             : OpKind::store_v;
    if (kind == OpKind::shift) layer->shift_rope = rope_params(node);
    if (kind == OpKind::store_k) binding.learn_rope(layer->ops[0].layer, node);
    if (stores(node)) layer->ops[int(kind)].last_half = !half_stored.insert(layer).second;
    replace(scheduler, node, layer->ops[int(kind)]);
  }
  return binding.cache().failure().ok();
}

}  // namespace mikv::llama
