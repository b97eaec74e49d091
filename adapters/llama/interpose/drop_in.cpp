#include "interpose/drop_in.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "interpose/next_definition.hpp"
#include "interpose/registry.hpp"
#include "kv_context.hpp"
#include "mikv/byte_size.hpp"
#include "mikv/estimate.hpp"
#include "say.hpp"

namespace mikv::llama {
namespace {

std::optional<DropIn> current;
Report* current_report = nullptr;

// Null without a file. Never destroyed: contexts may be freed after main() has ended.
Report* report_in(const std::string& file) {
  static auto& reports = *new std::map<std::string, Report>;
  if (file.empty()) return nullptr;
  return &reports.try_emplace(file, file, say).first->second;
}

std::vector<std::string> arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

// What the program asks for that mikv would have to overrule; empty if there is nothing.
std::string conflict(const llama_context_params& params) {
  if (params.type_k == GGML_TYPE_F16 && params.type_v == GGML_TYPE_F16) return "";
  const std::string by = own_cache_type(arguments());
  return by.empty() ? "cache types of llama.cpp (type_k, type_v)" : by;
}

// --kv-budget is over all contexts of the program: one account has them all.
std::shared_ptr<MemoryAccount> shared_account() {
  static const auto account = std::make_shared<MemoryAccount>();
  return account;
}

void say_once(const std::string& line) {
  static std::mutex of_said;
  const std::lock_guard lock(of_said);
  static std::set<std::string> said;  // programs may try again
  if (!said.insert(line).second) return;
  if (isatty(STDERR_FILENO)) std::fputs("\r\033[K", stderr);  // llama-cli shows there that it is loading
  say(line);
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
  std::vector<LayerLoad> layers;
  double elements = 0.0;
  for (const auto& [index, layer] : binding.layers()) {
    const LayerShape& shape = binding.cache().shape(index);
    const uint64_t n_tokens = std::min<uint64_t>(n_each, layer.cells_per_stream);  // fewer in a sliding window
    layers.push_back({shape, n_tokens});
    elements += double(n_sequences * n_tokens * shape.n_kv_heads * (shape.head_dim_k + shape.head_dim_v));
  }
  const auto size = estimate_cache(layers, binding.cache().spec(), kMeasuredTokens);
  if (!size) return "KV cache " + drop_in.name;
  const double bytes = double(n_sequences) * size.value().held;
  char bits[32];
  *std::to_chars(bits, bits + sizeof bits, 8.0 * bytes / elements, std::chars_format::fixed, 1).ptr = '\0';
  std::string line = "KV cache " + drop_in.name + ": " + bits + " bits per element, " + format_bytes(bytes) + " for " +
                     with_commas(n_each * n_sequences) + " tokens (f16 " + format_bytes(2.0 * elements) + ")";
  if (drop_in.budget_bytes) line += ", budget " + format_bytes(double(drop_in.budget_bytes));
  return line;
}

}  // namespace

Setting Setting::variable(const char* name) {
  const char* value = std::getenv(name);
  return {name, value ? value : ""};
}

Result<DropIn> DropIn::parse(const Setting& kv, const Setting& budget, const Setting& report) {
  DropIn drop_in;
  constexpr std::string_view kStock = "llama:";
  if (kv.value.starts_with(kStock)) {
    const std::string type = kv.value.substr(kStock.size());
    return Error{kv.written(kv.value) + ": of llama.cpp's own caches only llama:f16 is known here; for another type " +
                 "say " + kv.written("llama:f16") + " and, to llama.cpp, -ctk " + type + " -ctv " + type};
  }
  auto spec = Spec::parse(kv.value);
  if (!spec) return Error{kv.name + ": " + spec.message()};
  drop_in.spec = std::move(spec).value();
  drop_in.name = kv.value;
  if (budget.given()) {
    const auto bytes = parse_size(budget.value);
    if (!bytes) return Error{budget.name + ": " + bytes.message()};
    drop_in.budget_bytes = bytes.value();
  }
  drop_in.report_file = report.value;
  return drop_in;
}

std::string own_cache_type(const std::vector<std::string>& args) {
  constexpr std::string_view kNone = "f16";
  static constexpr std::array kOptions = {
      "-ctk",  "-ctv",  "--cache-type-k",       "--cache-type-v",       "--spec-draft-type-k",
      "-ctkd", "-ctvd", "--cache-type-k-draft", "--cache-type-v-draft", "--spec-draft-type-v"};
  for (size_t i = 0; i + 1 < args.size(); ++i) {
    if (std::ranges::find(kOptions, args[i]) != kOptions.end() && args[i + 1] != kNone)
      return args[i] + " " + args[i + 1];
  }
  for (const char* name : {"LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V", "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K",
                           "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V"}) {
    const Setting set = Setting::variable(name);
    if (set.given() && set.value != kNone) return set.name + "=" + set.value;
  }
  return "";
}

void use_drop_in(const DropIn& drop_in) {
  current = drop_in;
  current_report = report_in(drop_in.report_file);
}
void stop_drop_in() { current.reset(); }

llama_context* init_drop_in(llama_model* model, llama_context_params params) {
  const auto next = MIKV_NEXT(llama_init_from_model);  // sets mikv up, if it was loaded before llama.cpp
  const auto stock = [&] { return next(model, params); };
  if (!current || !model) return stock();
  if (const std::string what = conflict(params); !what.empty()) {
    say_once("the program asks for " + what +
             ", but mikv has the KV cache; leave out either (--kv llama:f16, or no "
             "MIKV_KV, is llama.cpp's own)");
    return nullptr;
  }
  if (params.n_batch == 0) {  // llama.cpp would abort
    say_once("the batch has 0 tokens (-b 0); give it one at least");
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
  binding.report_to(current_report);
  binding.cache().set_budget(current->budget_bytes);
  binding.note_figures();
  say_once(start_line(*current, context.value(), binding));
  return context.value();
}

}  // namespace mikv::llama
