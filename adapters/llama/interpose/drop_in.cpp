#include "interpose/drop_in.hpp"

#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <set>

#include "interpose/next_definition.hpp"
#include "interpose/registry.hpp"
#include "kv_context.hpp"
#include "mikv/byte_size.hpp"

namespace mikv::llama {
namespace {

std::optional<DropIn> current;

// What the program asks for that mikv would have to overrule.
const char* conflict(const llama_context_params& params) {
  if (params.type_k != GGML_TYPE_F16 || params.type_v != GGML_TYPE_F16) return "its own cache types (-ctk, -ctv)";
  return nullptr;
}

// --kv-budget is over all contexts of the program: one account has them all.
std::shared_ptr<MemoryAccount> shared_account() {
  static const auto account = std::make_shared<MemoryAccount>();
  return account;
}

void say_once(const char* line) {
  static std::set<std::string> said;  // programs may try again
  if (said.insert(line).second) std::fprintf(stderr, "mikv: %s\n", line);
}

}  // namespace

Result<DropIn> DropIn::parse(const char* kv, const char* budget, const char* report) {
  DropIn drop_in;
  auto spec = Spec::parse(kv);
  if (!spec) return spec.error();
  drop_in.spec = std::move(spec).value();
  if (budget && *budget) {
    const auto bytes = parse_size(budget);
    if (!bytes) return bytes.error();
    drop_in.budget_bytes = bytes.value();
  }
  if (report) drop_in.report_file = report;
  return drop_in;
}

void use_drop_in(const DropIn& drop_in) { current = drop_in; }
void stop_drop_in() { current.reset(); }

llama_context* init_drop_in(llama_model* model, llama_context_params params) {
  const auto stock = [&] { return MIKV_NEXT(llama_init_from_model)(model, params); };
  if (!current || !model) return stock();
  if (const char* what = conflict(params)) {
    say_once((std::string("the program asks for ") + what + "; leave that out, or leave out --kv (MIKV_KV)").c_str());
    return nullptr;
  }
  if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
    say_once("flash attention is used, whatever -fa says");
  }
  const auto context = init_context(model, params, current->spec, AttentionBy::engine, shared_account());
  if (!context) {
    say_once(context.message().c_str());
    return nullptr;
  }
  if (cache_of(context.value())->layers().empty()) {
    llama_free(context.value());
    return stock();
  }
  Binding& binding = *Registry::get().of_context(context.value());
  binding.print_failures();
  binding.report_to(current->report_file);
  binding.cache().set_budget(current->budget_bytes);
  return context.value();
}

}  // namespace mikv::llama
