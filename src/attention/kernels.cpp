// The attention kernels of each SIMD target that Highway has, and the list of all.
#include <string_view>

#include "attention/kernel_api.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/kernels.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h: compiled anew for each target.
#include "attention/kernels-inl.hpp"

#if HWY_ONCE
namespace mikv::attention {

HWY_EXPORT(Table);

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> tables;
  const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t target = 1; target > 0; target <<= 1) {  // a lower bit is a better target
    if (!(supported & target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    const Kernels& table = HWY_DYNAMIC_DISPATCH(Table)();
    const bool extended = std::string_view(table.name) == "avx2" || std::string_view(table.name) == "neon";
    if (const Kernels* dot = dot_kernels(); dot && extended) tables.push_back(dot);  // better than what it extends
    tables.push_back(&table);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return tables;
}

}  // namespace mikv::attention
#endif
