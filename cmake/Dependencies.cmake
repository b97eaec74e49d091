# Libraries from the system; scripts/setup.sh installs them. Only what the chosen options need is looked for.

# GLOBAL: a project that mikv is a part of links what the static library needs.
if(NOT TARGET Threads::Threads)
  find_package(Threads REQUIRED GLOBAL)
endif()
if(NOT TARGET hwy::hwy)
  find_package(hwy REQUIRED GLOBAL)
endif()
find_path(MIKV_XXHASH_INCLUDE xxhash.h REQUIRED)  # used as a header only
if(MIKV_BUILD_LLAMA AND MIKV_BUILD_CLI)
  find_package(fmt REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(CLI11 REQUIRED)
endif()
if(MIKV_BUILD_TESTS)
  find_package(GTest REQUIRED)
  find_package(rapidcheck REQUIRED)
  find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
endif()
