// mikv_write_session_data FOLDER: writes FOLDER/session-vN.bin, N being the version of the format
// (tests/data/README.md).
#include <cstdio>
#include <exception>
#include <string>

#include "mikv/atomic_file.hpp"
#include "session_data.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: mikv_write_session_data FOLDER\n");
    return 2;
  }
  try {
    const std::string path =
        std::string(argv[1]) + "/session-v" + std::to_string(mikv::session::kContainerVersion) + ".bin";
    const mikv::Status status = mikv::write_file(path, mikv::session::pack(mikv::test::make_session_data()));
    std::printf("%s%s%s\n", path.c_str(), status ? "" : ": ", status ? "" : status.message().c_str());
    return status ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
