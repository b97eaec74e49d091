// Which SIMD target attention and encoding run on: the best of the machine, or the one MIKV_TARGET or set_simd_target()
// names.
#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "attention/kernel_api.hpp"
#include "codec/encode_kernels.hpp"

namespace mikv {
namespace attention {
namespace {

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> all = all_kernels();
  return all;
}

const Kernels* find(const std::string& name) {
  const auto found = std::find_if(tables().begin(), tables().end(), [&](const Kernels* k) { return k->name == name; });
  return found == tables().end() ? nullptr : *found;
}

std::atomic<const Kernels*>& chosen() {
  // A name in MIKV_TARGET that cannot be run is refused by target_error(), which every LayerCache::create asks: it must
  // not silently become another target.
  static std::atomic<const Kernels*> table = [] {
    const char* forced = std::getenv("MIKV_TARGET");
    const Kernels* named = forced ? find(forced) : nullptr;
    return named ? named : tables().front();
  }();
  return table;
}

Error unknown(const std::string& name) {
  std::string names;
  for (const Kernels* k : tables()) names += (names.empty() ? "" : ", ") + std::string(k->name);
  return Error{"SIMD target '" + name + "' is not available here; use one of: " + names};
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

Status target_error() {
  static const Status status = [] {
    const char* forced = std::getenv("MIKV_TARGET");
    return forced && !find(forced) ? Status(Error{"MIKV_TARGET: " + unknown(forced).message}) : Status();
  }();
  return status;
}

}  // namespace attention

std::string simd_target() { return attention::kernels().name; }

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  for (const attention::Kernels* k : attention::tables()) names.emplace_back(k->name);
  return names;
}

Status set_simd_target(const std::string& name) {
  const attention::Kernels* found = attention::find(name);
  if (!found) return attention::unknown(name);
  attention::chosen().store(found, std::memory_order_relaxed);
  codec::set_encode_target(name);
  return {};
}

}  // namespace mikv
