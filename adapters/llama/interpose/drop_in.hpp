// DropIn: mikv in programs that know nothing of it: every context that they create keeps its KV cache in mikv.
#pragma once

#include <cstdint>
#include <string>

#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

struct DropIn {
  Spec spec;
  uint64_t budget_bytes = 0;  ///< over all contexts; 0: none
  std::string report_file;    ///< bytes and figures as JSON, or for Prometheus if it ends with .prom; empty: none

  /// From MIKV_KV, MIKV_KV_BUDGET and MIKV_KV_REPORT as `get` gives them (null: not set). Error: a value that is no
  /// spec or size.
  static Result<DropIn> parse(const char* kv, const char* budget, const char* report);
};

/// Contexts that llama_init_from_model creates from now on.
void use_drop_in(const DropIn& drop_in);
/// Those that it creates after this are llama.cpp's own.
void stop_drop_in();

/// llama_init_from_model of the program. Null, with a line on stderr, if the model or the program's own cache options
/// do not go with mikv. A model without a KV cache is left alone.
llama_context* init_drop_in(llama_model* model, llama_context_params params);

}  // namespace mikv::llama
