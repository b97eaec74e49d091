// DropIn: mikv in programs that do not know it. Every context that they create keeps its KV cache in mikv.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

/// What the user set, and by which option or variable.
struct Setting {
  std::string name;  ///< "--kv", "MIKV_KV"
  std::string value;

  bool given() const { return !value.empty(); }
  /// As the user writes it, with this or another value: "--kv mikv", "MIKV_KV=mikv".
  std::string written(const std::string& other) const { return name + (name.starts_with('-') ? " " : "=") + other; }
  static Setting variable(const char* name);  ///< of the environment
};

struct DropIn {
  std::string name;  ///< of the cache, as it was asked for
  Spec spec;
  uint64_t budget_bytes = 0;  ///< over all contexts; 0: none
  std::string report_file;    ///< bytes and figures as JSON, or for Prometheus if it ends with .prom; empty: none

  /// Reads what the user set. Errors name the setting at fault: not a spec; not a size.
  static Result<DropIn> parse(const Setting& kv, const Setting& budget, const Setting& report);
};

/// The option or variable by which a program would choose llama.cpp's own cache types, with its value: "-ctk q8_0";
/// empty if there is none. f16 is no choice. args: of the program, without its name.
std::string own_cache_type(const std::vector<std::string>& args);

/// Applies to contexts that llama_init_from_model creates from now on.
void use_drop_in(const DropIn& drop_in);
/// Contexts created from now on are llama.cpp's own.
void stop_drop_in();

/// The program's llama_init_from_model. Returns null, with a line on stderr, if the model or the program's own cache
/// options are not supported. Leaves models without a KV cache alone.
llama_context* init_drop_in(llama_model* model, llama_context_params params);

}  // namespace mikv::llama
