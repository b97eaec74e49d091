// The definitions of llama.cpp's functions that ours hide.
#pragma once

#include <string>

namespace mikv::llama {

/// One line on how this program's llama.cpp differs from the one that mikv was built for; empty if it does not.
std::string version_mismatch();
/// The first call that needs llama.cpp makes this one before: its place to end the process if there is a mismatch,
/// because our functions would misread llama.cpp's structures.
void call_before_first_use(void (*function)());

/// The function `name` of libllama or libggml. Ends the process, with a line that says why, if there is none: the
/// caller would call a null pointer.
void* next_definition(const char* name);

}  // namespace mikv::llama

/// The definition that our function of the same name hides. Looked up once.
#define MIKV_NEXT(name)                                                                                 \
  ([] {                                                                                                 \
    static const auto found = reinterpret_cast<decltype(&::name)>(mikv::llama::next_definition(#name)); \
    return found;                                                                                       \
  }())
