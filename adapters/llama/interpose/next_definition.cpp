#include "interpose/next_definition.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "say.hpp"

namespace mikv::llama {
namespace {

// Programs may load llama.cpp for themselves alone (Python's ctypes does). Its functions are not found from here then;
// this puts the libraries where every lookup finds them.
void make_llama_global() {
  std::vector<std::string> libraries;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const char* slash = std::strrchr(info->dlpi_name, '/');
        const char* file = slash ? slash + 1 : info->dlpi_name;
        if (std::strncmp(file, "libllama.so", 11) == 0 || std::strncmp(file, "libggml", 7) == 0) {
          static_cast<std::vector<std::string>*>(out)->push_back(info->dlpi_name);
        }
        return 0;
      },
      &libraries);
  for (const std::string& library : libraries) dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

}  // namespace

std::string version_mismatch() {
  make_llama_global();
  using Version = const char* (*)();
  const auto version = reinterpret_cast<Version>(dlsym(RTLD_DEFAULT, "llama_version"));
  const std::string built_for = MIKV_LLAMA_VERSION, here = version ? version() : "older than 0.5.0";
  if (built_for.substr(0, built_for.find(' ')) == here.substr(0, here.find('-')))
    return {};  // a build may say 0.5.0-dev
  return "this program's llama.cpp is " + here + ", mikv was built for " + built_for +
         "; use that one, or MIKV_ON_MISMATCH=stock to run without mikv";
}

namespace {
void (*before_first_use)() = nullptr;
}

void call_before_first_use(void (*function)()) { before_first_use = function; }

void* next_definition(const char* name) {
  // Called by functions that throw nothing: without memory for this, the process ends here and says why.
  static const bool once = []() noexcept {
    try {
      make_llama_global();
      if (before_first_use) before_first_use();
    } catch (const std::exception& error) {
      say_failed("cannot begin", error.what());
      std::_Exit(2);
    }
    return true;
  }();
  (void)once;
  if (void* found = dlsym(RTLD_NEXT, name)) return found;
  say("this program's llama.cpp has no " + std::string(name) + "; mikv works with llama.cpp " MIKV_LLAMA_VERSION);
  std::exit(2);
}

}  // namespace mikv::llama
