// MIKV_FOR_EACH_CPU before a function: it is compiled for several CPUs, the best of which is chosen at start. For plain
// loops that the compiler vectorises. Not under sanitizers, whose runtime is not there yet when the choice is made.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define MIKV_FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MIKV_FOR_EACH_CPU
#endif
