// Reading --kv lists, and the sizes of llama.cpp's own cache types.
#include <algorithm>
#include <array>

#include "engine/engine.hpp"
#include "ggml.h"

namespace mikv::llama {
namespace {

constexpr std::string_view kStockPrefix = "llama:", kExact = ":prefill=exact", kStreaming = ":prefill=streaming";

// The types that llama.cpp's -ctk / -ctv accept.
constexpr std::array kStockTypes = {GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1,
                                    GGML_TYPE_Q5_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL};

}  // namespace

std::string stock_type_names() {
  std::string names;
  for (ggml_type type : kStockTypes) names += (names.empty() ? "" : ", ") + std::string(ggml_type_name(type));
  return names;
}

Result<KvChoice> KvChoice::parse(std::string_view text) {
  KvChoice choice;
  choice.name = text;
  if (!text.starts_with(kStockPrefix)) {
    auto spec = Spec::parse(text);
    if (!spec)
      return Error{spec.message() +
                   (text.starts_with("llama") ? "; stock llama.cpp is llama:TYPE, e.g. llama:f16" : "")};
    choice.spec = std::move(spec).value();
    return choice;
  }
  std::string_view type_name = text.substr(kStockPrefix.size());
  choice.takes_prompt = type_name.ends_with(kExact);
  for (const std::string_view option : {kExact, kStreaming}) {
    if (type_name.ends_with(option)) type_name.remove_suffix(option.size());
  }
  for (ggml_type type : kStockTypes) {
    if (type_name == ggml_type_name(type)) choice.stock_type = type;
  }
  if (choice.stock_type < 0) {
    return Error{"unknown llama.cpp cache type \"" + std::string(type_name) + "\" in \"" + choice.name +
                 "\"; use one of " + stock_type_names() + ", with :prefill=exact behind it or nothing"};
  }
  return choice;
}

Result<std::vector<KvChoice>> parse_kv_list(std::string_view list) {
  if (list.empty()) return Error{"--kv is empty; name at least one cache, e.g. --kv full,mikv,llama:f16"};
  std::vector<KvChoice> choices;
  for (const std::string& text : split_spec_list(list)) {
    auto choice = KvChoice::parse(text);
    if (!choice) return choice.error();
    const bool twice = std::ranges::any_of(choices, [&](const KvChoice& c) { return c.name == text; });
    if (twice) return Error{"--kv names \"" + text + "\" twice; name each cache once"};
    choices.push_back(std::move(choice).value());
  }
  return choices;
}

}  // namespace mikv::llama
