/* The version of mikv. CMake, the packages and the command read it from here. For C and C++. */
#ifndef MIKV_VERSION_H
#define MIKV_VERSION_H

#define MIKV_VERSION_MAJOR 0
#define MIKV_VERSION_MINOR 1
#define MIKV_VERSION_PATCH 0

#define MIKV_STRINGIFY_(number) #number
#define MIKV_VERSION_STRING_(major, minor, patch) \
  MIKV_STRINGIFY_(major) "." MIKV_STRINGIFY_(minor) "." MIKV_STRINGIFY_(patch)

/* "0.1.0" */
#define MIKV_VERSION_STRING MIKV_VERSION_STRING_(MIKV_VERSION_MAJOR, MIKV_VERSION_MINOR, MIKV_VERSION_PATCH)

#endif
