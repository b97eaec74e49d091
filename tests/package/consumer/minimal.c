/* Stands in for examples/minimal.c until that exists. */
#include <stdio.h>
#include <string.h>

#include "mikv/export.h"
#include "mikv/version.h"

int main(void) {
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", MIKV_VERSION_MAJOR, MIKV_VERSION_MINOR, MIKV_VERSION_PATCH);
  puts(MIKV_VERSION_STRING);
  return strcmp(version, MIKV_VERSION_STRING) == 0 ? 0 : 1;
}
