#!/usr/bin/env bash
# Refuses what the layout forbids: llama.cpp's headers outside the adapter and the command's engine, includes against the direction of the layers,
# host names of package registries, paths of somebody's machine, files too long to read in one go, and scripts that
# cannot be run. Prints each finding; exits 1 if there is any.
set -u
cd "$(dirname "$0")/.." || exit 2

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  mapfile -t files < <(git ls-files)
else
  mapfile -t files < <(find . -type f -not -path './build/*' -printf '%P\n')
fi
existing=()
for file in "${files[@]}"; do [ -f "$file" ] && existing+=("$file"); done
[ "${#existing[@]}" -gt 0 ] || { echo "check_layout: no files to check" >&2; exit 2; }

failed=0
report() { # what, findings
  [ -n "$2" ] || return 0
  printf 'check_layout: %s:\n%s\n' "$1" "$2" >&2
  failed=1
}

sources=() outside=()
for file in "${existing[@]}"; do
  case "$file" in *.h|*.hpp|*.c|*.cc|*.cpp|*.inc) ;; *) continue ;; esac
  sources+=("$file")
  case "$file" in adapters/*|cli/engine/*) ;; *) outside+=("$file") ;; esac
done

# The adapter puts the cache into llama.cpp, and cli/engine runs models for the command; everything else sees mikv's own
# headers.
engine='^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"](llama(-cpp)?|ggml[-a-z]*|gguf|common|sampling|chat|arg|download)\.h[>"]'
[ "${#outside[@]}" -eq 0 ] || report 'llama.cpp headers outside adapters/ and cli/engine/' "$(grep -nEH "$engine" "${outside[@]}")"

# Includes go one way:
#   cli, adapters, python -> include/mikv -> src/context -> src/layer -> src/attention, src/tier -> src/policy -> src/codec
# src/session serves src/context and src/layer, src/spec reads the tables of policies and formats, src/report the public
# header of contexts. Tests may include everything.
rooms='attention|codec|context|layer|policy|report|session|spec|tier'

# Prints "FILE: HEADER" for each include with quotes in the sources of a folder whose header matches the expression.
includes() { # folder, expression, expression of those that are fine
  local inside=()
  for file in "${sources[@]}"; do
    case "$file" in */tests/*) ;; "$1"/*) inside+=("$file") ;; esac
  done
  [ "${#inside[@]}" -gt 0 ] || return 0
  sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]([^>"]*)[>"].*/\1/; T; F; p' "${inside[@]}" |
    paste -d: - - | sed 's/:/: /' | grep -E ": ($2)" | grep -vE ": ($3)"
}
against=$(
  for folder in cli adapters python examples; do includes "$folder" "($rooms)/|src/|\.\./" '$'; done
  includes adapters "engine/" '$'  # the command's
  # Public headers include public headers.
  includes include "[a-z_]+(/[a-z_]+)*\.(h|hpp)" 'mikv/|[a-z_]+\.h$'
  includes src/codec "($rooms)/" 'codec/'
  for room in attention policy; do includes "src/$room" "($rooms)/" "$room/|codec/"; done
  includes src/tier "($rooms)/" '(tier|policy|codec)/'
  includes src/layer "($rooms)/" '(layer|attention|policy|tier|codec|session)/'
  includes src/context "($rooms)/" '(context|layer|attention|policy|tier|codec|session|spec)/'
  includes src/report "($rooms)/" 'report/'
  includes src/session "($rooms)/" 'session/'
  includes src/spec "($rooms)/" '(spec|policy|codec)/'
)
report 'includes against the direction of the layers' "$against"

# Packages are named, never located: pip on the user's machine knows where from.
hosts='(pypi|pythonhosted|npmjs|crates|deb\.debian|archive\.ubuntu|security\.debian)\.(org|com|io)'
report 'host names of package registries' "$(grep -nEIH "$hosts" "${existing[@]}")"

paths='(^|[^A-Za-z0-9_.{}$-])/(work|root|farm)/|/tmp/[a-z]+_jobs'
report 'paths of one machine' "$(grep -nEIH "$paths" "${existing[@]}")"

for file in "${existing[@]}"; do
  case "$file" in *.h|*.hpp|*.c|*.cc|*.cpp|*.inc|*.py|*.sh|*.cmake|*.md|*/CMakeLists.txt|Makefile) ;; *) continue ;; esac
  lines=$(wc -l <"$file")
  [ "$lines" -le 600 ] || report 'files over 600 lines' "$file: $lines"
done

# The docs name scripts as commands.
for file in "${existing[@]}"; do
  [ -x "$file" ] || [ "$(head -c 2 "$file" | tr -d '\0')" != '#!' ] || report 'scripts that cannot be run: chmod +x' "$file"
done

[ "$failed" -eq 0 ] && echo "check_layout: ${#existing[@]} files, ${#sources[@]} sources: as the layout asks"
exit "$failed"
