# Checks of the tree itself, run by ctest beside the tests; once is enough, so not in sanitized or cross-compiled builds.
if(NOT MIKV_SANITIZE AND NOT CMAKE_CROSSCOMPILING)
  add_test(NAME layout COMMAND ${PROJECT_SOURCE_DIR}/scripts/check_layout.sh)
  add_test(NAME sizes COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/check_sizes.py)
  add_test(NAME format COMMAND ${PROJECT_SOURCE_DIR}/scripts/format.sh --check)
  set_tests_properties(layout sizes format PROPERTIES LABELS tree WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  # Only where pip cannot provide the formatter; the script says so.
  set_tests_properties(format PROPERTIES SKIP_RETURN_CODE 77)
endif()
