#!/usr/bin/env bash
# Installs the system packages that the build needs, where that is permitted; else prints the one line to run.
# Does nothing, quickly, when all are there. With "aarch64": those for the tests of 64-bit ARM under
# emulation; with "fuzz": those for fuzzing.
set -euo pipefail

packages=(
  git make cmake ninja-build g++ ccache pkg-config
  python3 python3-pip                          # pip fetches llama.cpp's source and the models
  python3-venv                                 # tests of the Python package
  libhwy-dev libfmt-dev nlohmann-json3-dev libcli11-dev libxxhash-dev
  libgtest-dev librapidcheck-dev
  dpkg-dev file                                # make package
  libssl-dev                                   # lets llama.cpp download models itself (--hf)
)

foreign=
if [ "${1:-}" = aarch64 ]; then
  foreign=arm64
  packages=(g++-aarch64-linux-gnu qemu-user-static libhwy-dev:arm64 libxxhash-dev:arm64 libgtest-dev:arm64 librapidcheck-dev:arm64)
fi

if [ "${1:-}" = fuzz ]; then
  packages=(clang-16 libclang-rt-16-dev)
fi

if ! command -v dpkg-query >/dev/null; then
  echo "mikv: this is not a Debian or Ubuntu system; install what corresponds to: ${packages[*]}" >&2
  # Not an error: CMake says what is missing, if anything is.
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  [[ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" == ?i* ]] || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
[ -z "$foreign" ] || install="dpkg --add-architecture $foreign && apt-get update && $install"
if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "mikv: system packages are missing and need an administrator; run: sudo $install" >&2
  exit 2
fi

echo "setup: installing ${missing[*]} (a minute or two)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1; }
# The package lists of a fresh machine are empty or old; asked for only now that something has to be installed.
{ [ -z "$foreign" ] || apt dpkg --add-architecture "$foreign"; } &&
  apt apt-get update && apt apt-get install -y --no-install-recommends "${missing[@]}" || {
  tail -n 15 "$log" >&2
  echo "mikv: apt-get failed (its last lines are above); mend that, then run: sudo $install" >&2
  exit 2
}
