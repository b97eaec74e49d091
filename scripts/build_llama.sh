#!/usr/bin/env bash
# Builds llama.cpp's libraries, unpatched, once per machine, version and flags, and tells where they are.
#
#   scripts/build_llama.sh --result FILE [--source DIR] [--cxx CXX] [--cc CC] [--jobs N]
#
# Without --source it takes the pinned source package. CMake calls this; FILE receives lines KEY=VALUE:
# SOURCE, BUILD, VERSION. An interrupted build goes on where it stopped; a second caller waits for the first.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${MIKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mikv}/llama.cpp
source_dir='' result='' cc=cc cxx=c++ jobs=$(nproc)

fail() { # one line: cause; remedy
  echo "mikv: $*" >&2
  exit 2
}

trap 'echo "mikv: stopped; run the same command again to go on" >&2; exit 130' INT TERM

while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || fail "$1 needs a value; see the first lines of scripts/build_llama.sh"
  case "$1" in
    --source) source_dir=$2 ;;
    --result) result=$2 ;;
    --cc) cc=$2 ;;
    --cxx) cxx=$2 ;;
    --jobs) jobs=$2 ;;
    *) fail "unknown option $1; see the first lines of scripts/build_llama.sh" ;;
  esac
  shift 2
done
[ -n "$result" ] || fail "--result is missing; name the file that shall receive the answer"
for tool in cmake ninja flock python3 "$cc" "$cxx"; do
  command -v "$tool" >/dev/null || fail "$tool is missing; run scripts/setup.sh"
done
mkdir -p "$cache" || fail "cannot write $cache; set MIKV_CACHE to a folder that can be written"

# Two builds must never share a folder. The compilers inherit the lock: should this script be killed, a new one waits
# until they are gone.
exec 9>"$cache/.lock"
if ! flock -n 9; then
  echo "llama.cpp: another process is building it, waiting"
  flock 9
fi

# ---- the source -----------------------------------------------------------------------------------------------
pinned() { # field of the manifest's llama.cpp entry
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["sources"]["llama.cpp"][sys.argv[2]])' \
    "$root/cli/packages.json" "$1"
}

if [ -n "$source_dir" ]; then
  [ -f "$source_dir/include/llama.h" ] && [ -f "$source_dir/CMakeLists.txt" ] ||
    fail "MIKV_LLAMA_SOURCE=$source_dir is not a llama.cpp checkout (no include/llama.h); give its top folder"
  source_dir=$(cd "$source_dir" && pwd)
  # Only if the folder itself is the checkout: an unrelated repository around it says nothing about llama.cpp.
  commit=unknown
  [ ! -e "$source_dir/.git" ] || commit=$(git -C "$source_dir" rev-parse --short=9 HEAD 2>/dev/null || echo unknown)
else
  archive_name=$(pinned file)
  source_dir=$cache/src-${archive_name%.tar.gz}
  commit=$(pinned commit)
  if [ ! -f "$source_dir/include/llama.h" ]; then
    archive=$(python3 "$root/scripts/fetch_package.py" get llama.cpp) || exit $?
    echo "llama.cpp: unpacking"
    unpacked=$source_dir.unpacking
    rm -rf "$unpacked" "$source_dir"
    mkdir "$unpacked"
    archive_root=$(pinned root)
    tar -xf "$archive" -C "$unpacked" "$archive_root" ||
      { rm -rf "$unpacked"; fail "cannot unpack $archive; free some disk space and run this again"; }
    mv "$unpacked/$archive_root" "$source_dir" # in one step: a half-unpacked source never has this name
    rm -rf "$unpacked" "$archive"
  fi
fi

number() { sed -n "s/^set(LLAMA_VERSION_$1 \([0-9]*\)).*/\1/p" "$source_dir/CMakeLists.txt"; }
version=$(number MAJOR).$(number MINOR).$(number PATCH)
[ "$version" != .. ] || version=unversioned

# ---- the build: one folder for each combination of what decides its bytes ------------------------------------------
openssl=OFF # without it llama.cpp cannot download models itself; everything else works
if pkg-config --atleast-version=3 openssl 2>/dev/null; then openssl=ON; fi
# llama.cpp 0.5.0 built by GCC 12 crashes in its AMX code: the compiler drops the stores that fill the tile configuration
# (llama.cpp pull request 26954, open). Its AVX-512 code is used there, by stock llama.cpp as by us.
no_amx=''
if grep -qw amx_tile /proc/cpuinfo 2>/dev/null; then no_amx=' -mno-amx-tile -mno-amx-int8 -mno-amx-bf16'; fi
flags=(
  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_OPENSSL=$openssl
  -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_APP=OFF -DGGML_RPC=ON
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  "-DCMAKE_C_FLAGS=-w$no_amx" "-DCMAKE_CXX_FLAGS=-w$no_amx" # -w: not our code, not our warnings
)
is_pinned() { [ "${source_dir#"$cache/src-"}" != "$source_dir" ]; }
unity=/dev/null # a user's checkout is compiled file by file: its files may not go together
if is_pinned; then unity=$root/cmake/LlamaCppUnity.cmake; fi
identity=("-DLLAMA_BUILD_NUMBER=0" "-DLLAMA_BUILD_COMMIT=$commit") # reported by llama.cpp; not part of the key
# The tools as libraries, for our own binary, and the programs that ours are compared with.
targets=(llama llama-common llama-server-impl llama-cli-impl llama-completion-impl llama-bench-impl
         llama-batched-bench-impl llama-perplexity-impl llama-server llama-perplexity llama-completion ggml-rpc-server)

compiler_id() { command -v "$1"; "$1" -dumpmachine; "$1" -dumpfullversion -dumpversion; }
# GGML_NATIVE compiles for this very processor, so a cache on a shared disk needs one build for each kind.
cpu_id() { uname -sm; grep -m1 '^model name' /proc/cpuinfo || true; grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true; }
key=$({ echo "$source_dir $version ${targets[*]}"; printf '%s\n' "${flags[@]}"; cat "$unity"; compiler_id "$cc"
        compiler_id "$cxx"; cpu_id; } | sha256sum | cut -c1-12)
build=$cache/build-$version-$key
done_mark=$build/.mikv-complete

# A line each 5 % instead of one for each file: CMake hands our output on through a pipe, so a line that updates is not
# to be had. What failed is shown below.
build_with_progress() {
  NINJA_STATUS='[%f/%t] ' ninja -C "$build" -j "$jobs" "${targets[@]}" 2>&1 | tee "$build/build.log" | show_steps
}
show_steps() { # a loop in bash: awk may hold lines back
  local line shown=-1 start=$SECONDS
  while IFS= read -r line; do
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    local done=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
    local twentieth=$((20 * done / total))
    [ "$twentieth" -ne "$shown" ] || continue
    shown=$twentieth
    echo "llama.cpp: $done of $total steps, $((SECONDS - start)) s so far"
  done
}

# The pinned source never changes, so a complete build is left alone. A user's checkout does: it keeps its folder from
# commit to commit, and cmake and ninja find out what changed.
if ! is_pinned || [ ! -f "$done_mark" ]; then
  if ! is_pinned || [ ! -f "$build/build.ninja" ]; then
    if [ -f "$done_mark" ]; then echo "llama.cpp $version ($commit): building what changed in $source_dir"
    else echo "llama.cpp $version ($commit): building once into $build (some minutes)"; fi
    mkdir -p "$build"
    cp "$unity" "$build/unity.cmake" # the clone that began a build may be gone when another goes on with it
    cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" \
      "-DCMAKE_PROJECT_TOP_LEVEL_INCLUDES=$build/unity.cmake" "${flags[@]}" "${identity[@]}" >"$build/configure.log" 2>&1 ||
      { tail -n 20 "$build/configure.log" >&2; fail "llama.cpp cannot be configured; see $build/configure.log"; }
  fi
  build_with_progress ||
    { tail -n 30 "$build/build.log" >&2; fail "llama.cpp does not build; the compiler's message is above"; }
  for library in llama llama-common ggml ggml-base ggml-cpu llama-server-impl; do
    [ -e "$build/bin/lib$library.so" ] ||
      fail "the build has no lib$library.so; this llama.cpp differs too much, use the pinned one (no MIKV_LLAMA_SOURCE)"
  done
  touch "$done_mark"
fi

printf 'SOURCE=%s\nBUILD=%s\nVERSION=%s\n' "$source_dir" "$build" "$version ($commit)" >"$result"
