# Toolchain: Debian's cross compiler for 64-bit ARM. Tests run under QEMU's user-mode emulation; the libraries are Debian's
# arm64 packages beside the host's (scripts/setup.sh aarch64).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
