# Read by CMake in llama.cpp's own configuration, from scripts/build_llama.sh, for the pinned source alone.
#
# llama.cpp compiles its models several files at a time, and its other libraries file by file, each with the same large
# headers. These take half of the time when they are compiled several files at a time as well. Optimisation stays as it is.

function(mikv_unite target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endfunction()

function(mikv_compile_alone target) # files that do not bear the names of others
  list(TRANSFORM ARGN PREPEND ${CMAKE_SOURCE_DIR}/)
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

function(mikv_unite_all)
  foreach(target IN ITEMS llama-common mtmd server-context llama-server-impl llama-cli-impl)
    mikv_unite(${target})
  endforeach()
  mikv_compile_alone(llama-common common/json.cpp)
  mikv_compile_alone(mtmd tools/mtmd/mtmd-helper.cpp tools/mtmd/mtmd-helper-gen.cpp)
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL mikv_unite_all) # when its targets are there
