#include "kv_context.hpp"

#include "interpose/next_definition.hpp"
#include "interpose/registry.hpp"

namespace mikv::llama {

Result<llama_context*> init_context(llama_model* model, llama_context_params params, const Spec& spec,
                                    AttentionBy attention_by, std::shared_ptr<MemoryAccount> account) {
  if (const Status status = check_interposition(); !status) return status.error();
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = GGML_TYPE_F16;
  params.offload_kqv = false;
  auto created = Binding::create(spec, model, params, attention_by, std::move(account));
  if (!created) return created.error();
  std::unique_ptr<Binding> binding = std::move(created).value();
  llama_context* context = nullptr;
  {
    const CurrentBinding scope(binding.get());
    context = MIKV_NEXT(llama_init_from_model)(model, params);
  }
  const Status failure = binding->cache().failure();
  if (!context) {
    return failure ? Error{ErrorCode::engine, "llama.cpp could not create a context; its own log has the reason"}
                   : failure.error();
  }
  Registry::get().add(context, std::move(binding));
  if (failure) return context;
  llama_free(context);
  return failure.error();
}

Context* cache_of(const llama_context* context) {
  Binding* binding = Registry::get().of_context(context);
  return binding ? &binding->cache() : nullptr;
}

}  // namespace mikv::llama
