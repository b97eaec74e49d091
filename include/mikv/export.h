/* MIKV_API marks what the shared library exports; everything else in it is hidden. For C and C++.
 *
 * MIKV_STATIC is defined for users of the static library (CMake's mikv::mikv_static and pkg-config's static flags do
 * it): MIKV_API is then empty. */
#ifndef MIKV_EXPORT_H
#define MIKV_EXPORT_H

#if defined(MIKV_STATIC) || !defined(__GNUC__)
#define MIKV_API
#else
#define MIKV_API __attribute__((visibility("default")))
#endif

#endif
