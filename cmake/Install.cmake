# What `cmake --install` copies and `cpack` packs, in three components:
#   library   libmikv.so.0.1: what programs need
#   dev       headers, libmikv.so, libmikv.a, and how CMake and pkg-config find them
#   command   mikv, libmikv-llama.so and llama.cpp's libraries, when they are built
# Every path is relative: what is installed can be moved.

if(NOT TARGET mikv_shared)
  return()  # a build under sanitizers is not for others
endif()
include(CMakePackageConfigHelpers)

install(TARGETS mikv_shared EXPORT mikv_shared_export
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT dev)
install(TARGETS mikv EXPORT mikv_static_export ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
install(DIRECTORY include/mikv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev)

# Here `mikv` is the static library; to others mikv::mikv is the shared one.
set_target_properties(mikv_shared PROPERTIES EXPORT_NAME mikv)
set_target_properties(mikv PROPERTIES EXPORT_NAME mikv_static)
set(mikv_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mikv)
install(EXPORT mikv_shared_export FILE mikvTargets.cmake NAMESPACE mikv:: DESTINATION ${mikv_cmake_dir} COMPONENT dev)
install(EXPORT mikv_static_export FILE mikvStaticTargets.cmake NAMESPACE mikv:: DESTINATION ${mikv_cmake_dir} COMPONENT dev)
configure_package_config_file(cmake/mikvConfig.cmake.in mikvConfig.cmake INSTALL_DESTINATION ${mikv_cmake_dir})
# Until 1.0 a new minor version may break what uses the old one.
write_basic_package_version_file(mikvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mikvConfig.cmake ${PROJECT_BINARY_DIR}/mikvConfigVersion.cmake
        DESTINATION ${mikv_cmake_dir} COMPONENT dev)

# From the folder of mikv.pc to the prefix, to the libraries and to the headers.
file(RELATIVE_PATH mikv_pc_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/mikv.pc.in mikv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/mikv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)

set(mikv_components library dev)
set(mikv_library_package libmikv${mikv_soversion})
install(FILES LICENSE RENAME copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${mikv_library_package} COMPONENT library)
install(FILES LICENSE RENAME copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/libmikv-dev COMPONENT dev)

if(TARGET mikv_command)
  list(APPEND mikv_components command)
  # The adapter works with the llama.cpp that it was built with and no other, so that one goes along, in a folder of ours.
  # It is compiled for the processor of this machine (GGML_NATIVE): so is the package of the command.
  set(mikv_private_dir ${CMAKE_INSTALL_LIBDIR}/mikv)
  file(RELATIVE_PATH mikv_rpath /prefix/${CMAKE_INSTALL_BINDIR} /prefix/${mikv_private_dir})
  set_target_properties(mikv_command PROPERTIES INSTALL_RPATH "$ORIGIN/${mikv_rpath}")
  install(TARGETS mikv_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT command)
  # In the linker's own folder, so that LD_PRELOAD finds it by its name. It uses the llama.cpp of the program it is in.
  install(TARGETS mikv_preload LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT command)
  install(DIRECTORY ${MIKV_LLAMA_BUILD_FOUND}/bin/ DESTINATION ${mikv_private_dir} COMPONENT command
          USE_SOURCE_PERMISSIONS FILES_MATCHING PATTERN "lib*.so*")
  # llama.cpp's libraries look for each other in the folder where they were built.
  install(CODE "
    file(GLOB libraries \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${mikv_private_dir}/lib*.so*\")
    foreach(library IN LISTS libraries)
      if(NOT IS_SYMLINK \${library})
        file(READ_ELF \${library} RUNPATH runpath)
        if(runpath)  # those that need no other library of llama.cpp have none
          file(RPATH_SET FILE \${library} NEW_RPATH [[$ORIGIN]])
        endif()
      endif()
    endforeach()" COMPONENT command)
  install(FILES LICENSE RENAME copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/mikv COMPONENT command)
endif()

# ---- packages ------------------------------------------------------------------------------------------------------
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME mikv)
set(CPACK_PACKAGE_VENDOR "mikv developers")
set(CPACK_PACKAGE_CONTACT "mikv developers")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL ${mikv_components})
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_MAINTAINER "mikv developers")

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME ${mikv_library_package})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/cmake/debian/triggers)
set(CPACK_COMPONENT_LIBRARY_DESCRIPTION "Tiered KV cache for language models: the library
 Keeps the keys and values of attention in two precisions, and attends to them with SIMD kernels.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libmikv-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "${mikv_library_package} (= ${PROJECT_VERSION}), libhwy-dev")
set(CPACK_COMPONENT_DEV_DESCRIPTION "Tiered KV cache for language models: development files
 Headers, the static library, and the files by which CMake and pkg-config find them.")

set(CPACK_DEBIAN_COMMAND_PACKAGE_NAME mikv)
set(CPACK_DEBIAN_COMMAND_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_COMMAND_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${MIKV_LLAMA_BUILD_FOUND}/bin)
set(CPACK_DEBIAN_COMMAND_PACKAGE_RECOMMENDS "python3, python3-pip")
set(CPACK_COMPONENT_COMMAND_DESCRIPTION "Tiered KV cache for language models: the command
 Runs language models with llama.cpp on a KV cache that is several times smaller.
 It has a llama.cpp that is compiled for the processor of the machine that built this package.")
include(CPack)
