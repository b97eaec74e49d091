# Checks of the tree itself, run by ctest beside the tests; once is enough, so not in sanitized builds.
if(NOT MIKV_SANITIZE)
  add_test(NAME layout COMMAND ${PROJECT_SOURCE_DIR}/scripts/check_layout.sh WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
endif()
