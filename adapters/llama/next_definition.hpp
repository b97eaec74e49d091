// The definitions of llama.cpp's functions that ours hide.
#pragma once

namespace mikv::llama {

/// The function `name` as libllama or libggml define it. Ends the process, with a line that says why, if there is none:
/// a caller would call a null pointer.
void* next_definition(const char* name);

}  // namespace mikv::llama

/// The definition that our function of the same name hides. Looked up once.
#define MIKV_NEXT(name)                                                                                          \
  ([] {                                                                                                          \
    static const auto found = reinterpret_cast<decltype(&::name)>(mikv::llama::next_definition(#name));          \
    return found;                                                                                                \
  }())
