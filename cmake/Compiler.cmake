# Warnings, sanitizers and the compiler cache: what every target of ours is compiled with.

add_library(mikv_warnings INTERFACE)
# Options are given by name, {.threads = 4}; for what is left out its default is meant, which -Wextra takes for a slip.
target_compile_options(mikv_warnings INTERFACE -Wall -Wextra -Wshadow -Wno-missing-field-initializers
                       $<$<BOOL:${MIKV_WERROR}>:-Werror>)
# GCC 12 takes `"text" + std::string` for an overlapping copy (GCC bug 105651, mended in 13), and looks at widths of a
# tile that a constant rules out.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(mikv_warnings INTERFACE -Wno-restrict -Wno-array-bounds -Wno-stringop-overread
                         -Wno-stringop-overflow)
endif()

# Nothing compiled by another compiler is ever given a vector.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(mikv_warnings INTERFACE -Wno-psabi)
endif()

# Ours only: other people's code, when we compile any, keeps its own warning level.
function(mikv_use_warnings)
  foreach(target IN LISTS ARGN)
    target_link_libraries(${target} PRIVATE mikv_warnings)
  endforeach()
endfunction()

# For code that mostly waits: for people, files, or the library. -O3 has nothing to gain there and takes longer to compile.
function(mikv_optimise_less)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O2>)
  endforeach()
endfunction()

# For code whose files take most of the compiler's time with the headers that they share: several files at a time.
function(mikv_compile_together n_files)
  set_target_properties(${ARGN} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${n_files})
endfunction()

# Sanitizers are set for the whole tree: mixing checked and unchecked objects gives false reports.
if(MIKV_SANITIZE STREQUAL "address")
  set(mikv_sanitizers address,undefined)
elseif(MIKV_SANITIZE STREQUAL "thread")
  set(mikv_sanitizers thread)
elseif(MIKV_SANITIZE STREQUAL "fuzzer")
  set(mikv_sanitizers address,undefined,fuzzer-no-link)
elseif(NOT MIKV_SANITIZE STREQUAL "")
  message(FATAL_ERROR "MIKV_SANITIZE=${MIKV_SANITIZE} is unknown; use address, thread, fuzzer (Clang) or leave it empty")
endif()
if(mikv_sanitizers)
  # Not recovering turns every finding into a failed test instead of a line in a log.
  add_compile_options(-fsanitize=${mikv_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${mikv_sanitizers})
endif()

# A project that mikv is a part of chooses its own launcher.
if(PROJECT_IS_TOP_LEVEL)
  find_program(MIKV_CCACHE ccache)
  mark_as_advanced(MIKV_CCACHE)
  if(MIKV_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_C_COMPILER_LAUNCHER ${MIKV_CCACHE})
    set(CMAKE_CXX_COMPILER_LAUNCHER ${MIKV_CCACHE})
  endif()
endif()
