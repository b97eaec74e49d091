#include "interpose/drop_in.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>

#include "cache_size.hpp"
#include "interpose/next_definition.hpp"
#include "interpose/registry.hpp"
#include "interpose/report.hpp"
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

void say_once(const std::string& line) {
  static std::set<std::string> said;  // programs may try again
  if (!said.insert(line).second) return;
  const bool terminal = isatty(STDERR_FILENO);  // llama-cli shows there that it is loading
  std::fprintf(stderr, "%smikv: %s\n", terminal ? "\r\033[K" : "", line.c_str());
}

// llama.cpp creates a context without memory, of a model without weights, to see what would fit.
bool is_simulation(const Binding& binding) {
  const auto& layers = binding.layers();
  return !layers.empty() && !Registry::get().is_cache_buffer(layers.begin()->second.k->buffer);
}

// "8192" -> "8,192"
std::string with_commas(uint64_t n) {
  std::string text = std::to_string(n);
  for (int at = int(text.size()) - 3; at > 0; at -= 3) text.insert(size_t(at), ",");
  return text;
}

// Enough for the bits of a long text; takes some hundredths of a second.
constexpr uint32_t kMeasuredTokens = 2048;

// What the whole context will take, as `mikv estimate` computes it.
std::string start_line(const DropIn& drop_in, llama_context* context, const Binding& binding) {
  const uint64_t n_each = llama_n_ctx_seq(context);
  const uint64_t n_sequences = binding.cache().options().unified ? 1 : llama_n_seq_max(context);
  std::map<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint64_t>, uint64_t> n_alike;
  for (const auto& [index, layer] : binding.layers()) {
    const LayerShape& s = binding.cache().shape(index);
    const uint64_t n_tokens = std::min<uint64_t>(n_each, layer.cells_per_stream);  // fewer in a sliding window
    ++n_alike[{s.n_heads, s.n_kv_heads, s.head_dim_k, s.head_dim_v, n_tokens}];
  }
  double bytes = 0.0, elements = 0.0;
  for (const auto& [key, n_layers] : n_alike) {
    const auto& [n_heads, n_kv_heads, dim_k, dim_v, n_tokens] = key;
    const auto size =
        estimate_cache({n_heads, n_kv_heads, dim_k, dim_v}, binding.cache().spec(), n_tokens, kMeasuredTokens);
    if (!size) return "KV cache " + drop_in.name;
    bytes += double(n_sequences * n_layers) * size.value().held;
    elements += double(n_sequences * n_layers * n_tokens * n_kv_heads * (dim_k + dim_v));
  }
  char bits[32];
  *std::to_chars(bits, bits + sizeof bits, 8.0 * bytes / elements, std::chars_format::fixed, 1).ptr = '\0';
  std::string line = "KV cache " + drop_in.name + ": " + bits + " bits per element, " + format_bytes(bytes) + " for " +
                     with_commas(n_each * n_sequences) + " tokens (f16 " + format_bytes(2.0 * elements) + ")";
  if (drop_in.budget_bytes) line += ", budget " + format_bytes(double(drop_in.budget_bytes));
  return line;
}

}  // namespace

Result<DropIn> DropIn::parse(const char* kv, const char* budget, const char* report) {
  DropIn drop_in;
  auto spec = Spec::parse(kv);
  if (!spec) return spec.error();
  drop_in.spec = std::move(spec).value();
  drop_in.name = kv;
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
    say_once(std::string("the program asks for ") + what + "; leave that out, or leave out --kv (MIKV_KV)");
    return nullptr;
  }
  if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
    say_once("flash attention is used, whatever -fa says");
  }
  const auto context = init_context(model, params, current->spec, AttentionBy::engine, shared_account());
  if (!context) {
    say_once(context.message());
    return nullptr;
  }
  if (cache_of(context.value())->layers().empty()) {
    llama_free(context.value());
    return stock();
  }
  Binding& binding = *Registry::get().of_context(context.value());
  if (is_simulation(binding)) return context.value();
  binding.print_failures();
  binding.report_to(current->report_file);
  binding.cache().set_budget(current->budget_bytes);
  report(binding);
  say_once(start_line(*current, context.value(), binding));
  return context.value();
}

}  // namespace mikv::llama
