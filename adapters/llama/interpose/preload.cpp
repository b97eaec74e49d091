// libmikv-llama.so: mikv in a program that was built without it. Preloaded, its functions are found before libllama's.
//
//   LD_PRELOAD=libmikv-llama.so MIKV_KV=mikv llama-server -m model.gguf
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "interpose/drop_in.hpp"
#include "interpose/next_definition.hpp"
#include "say.hpp"

namespace {

[[noreturn]] void refuse(const std::string& why) {
  mikv::llama::say(why);
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

// Set, but without MIKV_KV for nothing.
std::string set_in_vain() {
  for (const char* name : {"MIKV_KV_BUDGET", "MIKV_KV_REPORT"}) {
    if (mikv::llama::Setting::variable(name).given()) return name;
  }
  return "";
}

bool program_runs = false;  // it has begun, and cannot be started again

// Once, as soon as the program has llama.cpp: other programs, which inherit the environment, are left alone.
void set_up() {
  static bool begun = false;
  if (begun) return;
  begun = true;
  using mikv::llama::Setting;
  const Setting kv = Setting::variable("MIKV_KV");
  if (kv.value == "llama:f16") return;
  if (!kv.given()) {  // loaded, but not asked for
    const std::string vain = set_in_vain();
    if (!vain.empty()) {
      mikv::llama::say("loaded, but off: " + vain + " is set and MIKV_KV is not; MIKV_KV=mikv turns it on");
    }
    return;
  }
  const auto drop_in =
      mikv::llama::DropIn::parse(kv, Setting::variable("MIKV_KV_BUDGET"), Setting::variable("MIKV_KV_REPORT"));
  if (!drop_in) refuse(drop_in.message());
  const std::string mismatch = mikv::llama::version_mismatch();
  if (mismatch.empty()) {
    mikv::llama::use_drop_in(drop_in.value());
  } else if (leave_alone_on_mismatch() && !program_runs) {
    start_without();
  } else {
    refuse(mismatch);
  }
}

__attribute__((constructor)) void begin() {
  mikv::llama::call_before_first_use(set_up);  // where a library brings llama.cpp along later
  if (dlsym(RTLD_DEFAULT, "llama_backend_init")) set_up();
  program_runs = true;
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
  if (found && handle != RTLD_DEFAULT) set_up();
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
