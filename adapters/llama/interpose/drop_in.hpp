// DropIn: mikv in programs that do not know it. Every context that they create keeps its KV cache in mikv.
#pragma once

#include <cstdint>
#include <string>

#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

struct DropIn {
  std::string name;  ///< of the cache, as it was asked for
  Spec spec;
  uint64_t budget_bytes = 0;  ///< over all contexts; 0: none
  std::string report_file;    ///< bytes and figures as JSON, or for Prometheus if it ends with .prom; empty: none

  /// Parses the values of MIKV_KV, MIKV_KV_BUDGET and MIKV_KV_REPORT; null: not set. Errors: not a spec; not a size.
  static Result<DropIn> parse(const char* kv, const char* budget, const char* report);
};

/// Applies to contexts that llama_init_from_model creates from now on.
void use_drop_in(const DropIn& drop_in);
/// Contexts created from now on are llama.cpp's own.
void stop_drop_in();

/// The program's llama_init_from_model. Returns null, with a line on stderr, if the model or the program's own cache
/// options are not supported. Leaves models without a KV cache alone.
llama_context* init_drop_in(llama_model* model, llama_context_params params);

}  // namespace mikv::llama
