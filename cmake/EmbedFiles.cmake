# mikv_embed(TARGET FILE SYMBOL): puts FILE's bytes into TARGET, so that the binary stands alone.
#
# The code that uses it declares
#   namespace mikv::embedded { extern const std::string_view SYMBOL; }
# An edit of FILE runs CMake again and rebuilds one small source.
function(mikv_embed target file symbol)
  cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  # Bytes, not a raw string literal: no delimiter can clash and no compiler limits the length of an array.
  file(READ ${file} hex HEX)
  string(LENGTH "${hex}" n_digits)
  math(EXPR n_bytes "${n_digits} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n"
         bytes "${bytes}")
  cmake_path(GET file FILENAME name)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/embedded/${symbol}.cpp)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT
"// Generated from @name@.
#include <string_view>
namespace mikv::embedded {
namespace {
constexpr unsigned char kBytes[@n_bytes@] = {
@bytes@};
}
extern const std::string_view @symbol@;
const std::string_view @symbol@{reinterpret_cast<const char*>(kBytes), @n_bytes@};
}  // namespace mikv::embedded
")
  target_sources(${target} PRIVATE ${source})
  set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
