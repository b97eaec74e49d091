# Read by CMake in llama.cpp's own configuration, from scripts/build_llama.sh, for the pinned source alone.
#
# llama.cpp compiles its models several files at a time, and all else file by file, each file with the same large headers.
# Its own libraries and front ends take half of the time when they, too, are compiled several files at a time.
#
# What runs once for a start or a request is compiled with -O1, in two thirds of the time: arguments, chat templates, HTTP,
# images. What runs for each token keeps llama.cpp's own -O3, for mikv is compared with it.

function(mikv_unite target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()

function(mikv_compile_alone target) # files that do not bear the names of others
  list(TRANSFORM ARGN PREPEND ${CMAKE_SOURCE_DIR}/)
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

function(mikv_optimise_fully target) # files of a target that is optimised less
  list(TRANSFORM ARGN PREPEND ${CMAKE_SOURCE_DIR}/)
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS -O3)
endfunction()

function(mikv_unite_all)
  foreach(target IN ITEMS llama-common mtmd server-context llama-server-impl llama-cli-impl)
    mikv_unite(${target})
  endforeach()
  mikv_compile_alone(llama-common common/json.cpp)
  mikv_compile_alone(mtmd tools/mtmd/mtmd-helper.cpp tools/mtmd/mtmd-helper-gen.cpp)

  get_target_property(sources llama SOURCES)
  list(FILTER sources INCLUDE REGEX "^(llama|unicode).*\\.cpp$")
  list(TRANSFORM sources PREPEND ${CMAKE_SOURCE_DIR}/src/)
  set_source_files_properties(${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)

  foreach(target IN ITEMS llama-common mtmd cpp-httplib server-context llama-server-impl llama-cli-impl
          llama-completion-impl llama-perplexity-impl llama-bench-impl llama-batched-bench-impl ggml-rpc-server)
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  endforeach()
  mikv_optimise_fully(llama-common common/sampling.cpp common/speculative.cpp common/ngram-map.cpp
                      common/ngram-mod.cpp common/ngram-cache.cpp)
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL mikv_unite_all) # when its targets are there
