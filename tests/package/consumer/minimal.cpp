// Stands in for examples/minimal.cpp until that exists.
#include <iostream>

#include "mikv/spec.hpp"
#include "mikv/version.h"

int main() {
  const auto spec = mikv::Spec::parse("mikv:keep=0.25");
  if (!spec || spec.value().keep != 0.25) return 1;
  std::cout << "mikv " << MIKV_VERSION_STRING << ": " << spec.value().to_string() << "\n";
  return mikv::Spec::parse("mikv:kept=0.25").ok() ? 1 : 0;
}
