// Where the adapter's lines for people go: stderr, as the rest of a llama.cpp program's.
#pragma once

#include <cstdio>
#include <string_view>

namespace mikv::llama {

/// Prints "mikv: LINE". Any thread; allocates nothing, so that it also reports that memory ran out.
inline void say(std::string_view line) noexcept { std::fprintf(stderr, "mikv: %.*s\n", int(line.size()), line.data()); }

/// Prints "mikv: WHAT: WHY".
inline void say_failed(std::string_view what, std::string_view why) noexcept {
  std::fprintf(stderr, "mikv: %.*s: %.*s\n", int(what.size()), what.data(), int(why.size()), why.data());
}

}  // namespace mikv::llama
