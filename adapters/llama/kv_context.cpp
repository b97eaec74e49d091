#include "kv_context.hpp"

#include <atomic>
#include <thread>

#include "next_definition.hpp"
#include "registry.hpp"

namespace mikv::llama {

class Snapshot {
 public:
  std::map<int, std::unique_ptr<LayerCache>> layers;
  Sequences sequences;
};

namespace {

Error not_ours() {
  return Error{"this llama.cpp context does not keep its KV cache in mikv; create it with init_context"};
}

// Runs work(layer) for all layers on n_threads threads; the first error wins.
template <typename Work>
Status for_all_layers(Binding& binding, Work work) {
  std::vector<Layer*> layers;
  for (auto& [index, layer] : binding.layers()) layers.push_back(&layer);
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t i; (i = next.fetch_add(1)) < layers.size();) {
      if (const Status status = work(*layers[i]); !status) binding.fail(status.error());
    }
  };
  std::vector<std::thread> helpers;
  for (uint32_t t = 1; t < binding.n_threads() && t < layers.size(); ++t) helpers.emplace_back(run);
  run();
  for (std::thread& helper : helpers) helper.join();
  return binding.failure();
}

}  // namespace

Result<llama_context*> init_context(llama_model* model, llama_context_params params, const Spec& spec,
                                    AttentionBy attention_by) {
  if (const Status status = check_interposition(); !status) return Error{status.error()};
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = GGML_TYPE_F16;
  params.offload_kqv = false;
  auto binding = std::make_unique<Binding>(spec, model, params, attention_by);
  llama_context* context = nullptr;
  {
    const CurrentBinding scope(binding.get());
    context = MIKV_NEXT(llama_init_from_model)(model, params);
  }
  const Status failure = binding->failure();
  if (!context) {
    return Error{failure ? "llama.cpp could not create a context; try a smaller one, or --verbose for its own words"
                         : failure.error()};
  }
  Registry::get().add(context, std::move(binding));
  if (failure) return context;
  llama_free(context);
  return Error{failure.error()};
}

bool keeps_kv(const llama_context* ctx) {
  const Binding* binding = Registry::get().of_context(ctx);
  return binding && !binding->layers().empty();
}

Status status(const llama_context* ctx) {
  const Binding* binding = Registry::get().of_context(ctx);
  return binding ? binding->failure() : Status(not_ours());
}

Status end_prompt(llama_context* ctx) {
  Binding* binding = Registry::get().of_context(ctx);
  if (!binding) return not_ours();
  binding->sequences().for_each_segment([&](SegmentId segment) { binding->share_bits(segment, kFirstTokens); });
  return for_all_layers(*binding, [](Layer& layer) { return layer.cache->commit_all(kFirstTokens); });
}

MemoryUsage memory_usage(const llama_context* ctx) {
  const Binding* binding = Registry::get().of_context(ctx);
  return binding ? binding->memory_usage() : MemoryUsage();
}

Result<std::shared_ptr<const Snapshot>> snapshot(const llama_context* ctx) {
  const Binding* binding = Registry::get().of_context(ctx);
  if (!binding) return not_ours();
  auto copy = std::make_shared<Snapshot>(Snapshot{{}, binding->sequences()});
  for (const auto& [index, layer] : binding->layers()) {
    auto cache = layer.cache->clone(layer.cache->spec());
    if (!cache) return Error{cache.error()};
    copy->layers[index] = std::move(cache).value();
  }
  return std::shared_ptr<const Snapshot>(std::move(copy));
}

Status restore(llama_context* ctx, const std::shared_ptr<const Snapshot>& snapshot, const Spec& spec) {
  Binding* binding = Registry::get().of_context(ctx);
  if (!binding) return not_ours();
  // All or nothing: a spec that does not fit one layer must not leave a mixture behind.
  std::map<int, std::unique_ptr<LayerCache>> next;
  for (const auto& [index, layer] : binding->layers()) {
    const auto found = snapshot->layers.find(index);
    if (found == snapshot->layers.end() || found->second->shape() != layer.cache->shape()) {
      return Error{"the snapshot is of another model; take one of this context"};
    }
    auto cache = found->second->clone(spec);
    if (!cache) return Error{cache.error()};
    next[index] = std::move(cache).value();
  }
  for (auto& [index, layer] : binding->layers()) layer.cache = std::move(next[index]);
  binding->sequences() = snapshot->sequences;
  binding->set_spec(spec);
  return {};
}

void clear(llama_context* ctx) {
  if (Binding* binding = Registry::get().of_context(ctx)) binding->clear();
}

}  // namespace mikv::llama
