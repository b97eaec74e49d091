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

function(mikv_set_sources target property value) # of files, named from llama.cpp's folder
  list(TRANSFORM ARGN PREPEND ${CMAKE_SOURCE_DIR}/)
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES ${property} ${value})
endfunction()

function(mikv_unite_all)
  foreach(target IN ITEMS llama-common mtmd server-context llama-server-impl llama-cli-impl)
    mikv_unite(${target})
  endforeach()
  # These bear names of others.
  mikv_set_sources(llama-common SKIP_UNITY_BUILD_INCLUSION ON common/json.cpp)
  mikv_set_sources(mtmd SKIP_UNITY_BUILD_INCLUSION ON tools/mtmd/mtmd-helper.cpp tools/mtmd/mtmd-helper-gen.cpp)

  get_target_property(sources llama SOURCES)
  list(FILTER sources INCLUDE REGEX "^(llama|unicode).*\\.cpp$")
  list(TRANSFORM sources PREPEND src/)
  mikv_set_sources(llama SKIP_UNITY_BUILD_INCLUSION OFF ${sources})

  foreach(target IN ITEMS llama-common mtmd cpp-httplib server-context llama-server-impl llama-cli-impl
          llama-completion-impl llama-perplexity-impl llama-bench-impl llama-batched-bench-impl ggml-rpc-server)
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  endforeach()
  mikv_set_sources(llama-common COMPILE_OPTIONS -O3 common/sampling.cpp common/speculative.cpp common/ngram-map.cpp
                   common/ngram-mod.cpp common/ngram-cache.cpp)
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL mikv_unite_all) # when its targets are there
