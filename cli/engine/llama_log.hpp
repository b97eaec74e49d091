// What llama.cpp logs while it loads a model or creates a context: its functions return only that they failed.
#pragma once

#include <string>

namespace mikv::llama {

void forget_llama_errors();
/// The first error that llama.cpp logged since, which is the cause: what follows it are consequences. For the thread
/// that called llama.cpp. "no reason given; --verbose shows its log" if there is none.
std::string first_llama_error();

}  // namespace mikv::llama
