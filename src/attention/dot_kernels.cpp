// The attention kernels of CPUs that multiply bytes by fours in vectors of 256 or 128 bits: AVX2 with AVX-VNNI, NEON
// with dotprod. Highway knows neither as a target, so they are its AVX2 and NEON once more, under another name.
#include "attention/kernel_api.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/dot_kernels.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX2 || (HWY_TARGET == HWY_NEON && defined(__aarch64__))
#define MIKV_DOT_PRODUCTS 1
#if HWY_TARGET == HWY_AVX2
namespace hwy {
namespace N_AVX2_VNNI = N_AVX2;
}
#undef HWY_NAMESPACE
#define HWY_NAMESPACE N_AVX2_VNNI
#else
namespace hwy {
namespace N_NEON_DOT = N_NEON;
}
#undef HWY_NAMESPACE
#define HWY_NAMESPACE N_NEON_DOT
#endif
#include "attention/kernels-inl.hpp"
#endif

#if HWY_ONCE
namespace mikv::attention {

const Kernels* dot_kernels() {
#if HWY_TARGETS & HWY_AVX2
  if (__builtin_cpu_supports("avxvnni")) return &N_AVX2_VNNI::Table();
#elif HWY_TARGETS & HWY_NEON && defined(__aarch64__) && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return &N_NEON_DOT::Table();
#endif
  return nullptr;
}

}  // namespace mikv::attention
#endif
