# Checks of the tree itself, run by ctest beside the tests.
add_test(NAME layout COMMAND ${PROJECT_SOURCE_DIR}/scripts/check_layout.sh WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
