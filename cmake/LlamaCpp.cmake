# llama.cpp, unpatched: fetched and built once per machine into a cache outside the tree (scripts/build_llama.sh),
# or the user's checkout with -DMIKV_LLAMA_SOURCE=DIR. Provides
#
#   llama::llama         llama.h and ggml's headers; libllama and, through it, ggml
#   llama::common        common/ and its bundled headers: argument parsing, sampling, chat templates, download
#   llama::ggml, llama::ggml_base, llama::ggml_cpu
#   llama::tools    llama.cpp's server, chat, benchmarks and perplexity as libraries
#   MIKV_LLAMA_VERSION   for example "0.5.0 (0c1e57098)"
#
# All are shared libraries. CMake adds the folder of an imported library to the run path of what links to it,
# so our binaries run from the build folder as they are.

set(mikv_llama_result ${PROJECT_BINARY_DIR}/llama.txt)
set(mikv_llama_command ${PROJECT_SOURCE_DIR}/scripts/build_llama.sh --result ${mikv_llama_result}
    --cc ${CMAKE_C_COMPILER} --cxx ${CMAKE_CXX_COMPILER})
if(MIKV_LLAMA_SOURCE)
  list(APPEND mikv_llama_command --source ${MIKV_LLAMA_SOURCE})
endif()
# Neither output nor errors are captured: the script's progress is shown as it comes.
execute_process(COMMAND ${mikv_llama_command} RESULT_VARIABLE mikv_llama_failed)
if(mikv_llama_failed)
  message(FATAL_ERROR "llama.cpp is not available; the line above says why. "
                      "Without it: -DMIKV_BUILD_LLAMA=OFF builds the library and its tests alone.")
endif()

file(STRINGS ${mikv_llama_result} mikv_llama_lines)
foreach(line IN LISTS mikv_llama_lines)
  string(REGEX MATCH "^([A-Z]+)=(.*)$" matched "${line}")
  set(MIKV_LLAMA_${CMAKE_MATCH_1}_FOUND "${CMAKE_MATCH_2}")
endforeach()
set(MIKV_LLAMA_VERSION "${MIKV_LLAMA_VERSION_FOUND}")
message(STATUS "llama.cpp ${MIKV_LLAMA_VERSION} in ${MIKV_LLAMA_BUILD_FOUND}")

function(mikv_import_llama name library)
  cmake_parse_arguments(ARG "" "" "INCLUDE;LINK" ${ARGN})
  add_library(llama::${name} SHARED IMPORTED GLOBAL)
  list(TRANSFORM ARG_INCLUDE PREPEND ${MIKV_LLAMA_SOURCE_FOUND}/)
  set_target_properties(llama::${name} PROPERTIES
    IMPORTED_LOCATION ${MIKV_LLAMA_BUILD_FOUND}/bin/lib${library}.so
    INTERFACE_INCLUDE_DIRECTORIES "${ARG_INCLUDE}"
    INTERFACE_LINK_LIBRARIES "${ARG_LINK}")
endfunction()

mikv_import_llama(ggml_base ggml-base INCLUDE ggml/include)
mikv_import_llama(ggml_cpu ggml-cpu INCLUDE ggml/include LINK llama::ggml_base)
mikv_import_llama(ggml ggml INCLUDE ggml/include LINK llama::ggml_cpu llama::ggml_base)
mikv_import_llama(llama llama INCLUDE include LINK llama::ggml)
mikv_import_llama(common llama-common INCLUDE common vendor LINK llama::llama Threads::Threads)
# llama.cpp's programs as libraries: each has one function, llama_server(argc, argv) and so on.
add_library(llama::tools INTERFACE IMPORTED GLOBAL)
foreach(tool server cli completion bench batched-bench perplexity)
  mikv_import_llama(${tool}_impl llama-${tool}-impl LINK llama::common)
  set_property(TARGET llama::tools APPEND PROPERTY INTERFACE_LINK_LIBRARIES llama::${tool}_impl)
endforeach()
target_compile_definitions(llama::llama INTERFACE LLAMA_SHARED)
target_compile_definitions(llama::ggml_base INTERFACE GGML_SHARED GGML_BACKEND_SHARED)
