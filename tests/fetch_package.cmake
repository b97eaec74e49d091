# scripts/fetch_package.py against a package index on this machine; needs pip, no network.
# Not in sanitized builds: none of our compiled code runs in it.
if(NOT MIKV_SANITIZE)
  add_test(NAME fetch_package COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/fetch_package_test.py)
  set_tests_properties(fetch_package PROPERTIES TIMEOUT 300 LABELS long)
endif()
if(TARGET mikv_command)
  add_test(NAME model_command
           COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/model_command_test.py $<TARGET_FILE:mikv_command>)
  set_tests_properties(model_command PROPERTIES TIMEOUT 300 LABELS unit)
endif()
