// libmikv-llama.so: mikv in a program that was built without it. Preloaded, its functions are found before libllama's.
//
//   LD_PRELOAD=libmikv-llama.so MIKV_KV=mikv llama-server -m model.gguf
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "interpose/drop_in.hpp"
#include "interpose/next_definition.hpp"

namespace {

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "mikv: %s\n", why.c_str());
  std::exit(2);
}

bool leave_alone_on_mismatch() {
  const char* wish = std::getenv("MIKV_ON_MISMATCH");
  return wish && std::strcmp(wish, "stock") == 0;
}

// Starts the program once more, without us.
[[noreturn]] void start_without() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string line((std::istreambuf_iterator<char>(file)), {});
  std::vector<char*> arguments;
  for (size_t at = 0; at < line.size(); at += std::strlen(line.c_str() + at) + 1)
    arguments.push_back(const_cast<char*>(line.c_str() + at));
  arguments.push_back(nullptr);
  unsetenv("LD_PRELOAD");
  execv("/proc/self/exe", arguments.data());
  refuse("the program could not be started again without mikv; leave out LD_PRELOAD");
}

__attribute__((constructor)) void set_up() {
  const char* kv = std::getenv("MIKV_KV");
  if (!kv || !*kv || std::strcmp(kv, "llama:f16") == 0) return;  // loaded, but not asked for
  const auto drop_in = mikv::llama::DropIn::parse(kv, std::getenv("MIKV_KV_BUDGET"), std::getenv("MIKV_KV_REPORT"));
  if (!drop_in) refuse("MIKV_KV or MIKV_KV_BUDGET: " + drop_in.message());
  mikv::llama::use_drop_in(drop_in.value());
  mikv::llama::check_version_before_use();
  // A program that is linked to libllama has it by now; one that loads it later is checked then.
  if (!dlsym(RTLD_DEFAULT, "llama_backend_init")) return;
  const std::string mismatch = mikv::llama::version_mismatch();
  if (mismatch.empty()) return;
  if (leave_alone_on_mismatch()) start_without();
  refuse(mismatch);
}

}  // namespace

// Programs that look functions up by name in libllama (Python's ctypes) would find its own: ours are handed out
// instead. What is not ours goes on to the real dlsym by a jump, so that RTLD_NEXT still counts from who asked.
extern "C" void* dlsym(void* handle, const char* name) noexcept {
  using Lookup = void* (*)(void*, const char*);
  static const Lookup real = [] {
    for (const char* version : {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"}) {
      if (void* found = dlvsym(RTLD_NEXT, "dlsym", version)) return reinterpret_cast<Lookup>(found);
    }
    std::abort();
  }();
  if (handle == RTLD_NEXT || std::strncmp(name, "llama_", 6) != 0) return real(handle, name);
  void* const found = real(handle, name);
  static void* const self = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&set_up), &info);
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }();
  void* const ours = found && self ? real(self, name) : nullptr;
  Dl_info of_ours{}, of_self{};
  if (!ours || !dladdr(ours, &of_ours) || !dladdr(reinterpret_cast<void*>(&set_up), &of_self)) return found;
  return of_ours.dli_fbase == of_self.dli_fbase ? ours : found;
}
