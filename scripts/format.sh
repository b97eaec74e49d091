#!/usr/bin/env bash
# Formats all C and C++ sources, or tells which ones are not formatted.
#
#   scripts/format.sh           formats
#   scripts/format.sh --check   names what is not formatted and exits 1; exits 77 ("skipped") without a formatter
#
# Versions of clang-format differ in details, so one is fixed. pip puts it into build/tools/, once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=18.1.8
tools=build/tools/clang-format-$version
formatter=$tools/clang_format/data/bin/clang-format

if [ ! -x "$formatter" ]; then
  # Into a folder of its own first: two callers, or a broken download, must not leave half a formatter.
  mkdir -p build/tools
  fetched=$(mktemp -d "$tools.XXXXXX")
  trap 'rm -rf "$fetched"' EXIT
  if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$fetched" \
    "clang-format==$version" >"$fetched/pip.log" 2>&1; then
    echo "format: skipped: pip cannot provide clang-format $version: $(grep -v '^ *$' "$fetched/pip.log" | tail -n 1)" >&2
    exit 77
  fi
  mv -T "$fetched" "$tools" 2>/dev/null || [ -x "$formatter" ]
fi

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.h' '*.hpp' '*.c' '*.cpp')
else
  mapfile -t files < <(find . -name build -prune -o \( -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cpp' \) -printf '%P\n')
fi
existing=()
for file in "${files[@]}"; do [ -f "$file" ] && existing+=("$file"); done
[ "${#existing[@]}" -gt 0 ] || { echo "format: no files" >&2; exit 2; }

if [ "${1:-}" != --check ]; then
  "$formatter" -i "${existing[@]}"
elif ! findings=$("$formatter" --dry-run --Werror "${existing[@]}" 2>&1); then
  printf '%s\n' "$findings" | sed -n 's/^\([^ ]*:[0-9]*\):[0-9]*: error: .*/\1/p' | sort -u -t: -k1,1 >&2
  echo "format: the files above are not formatted; run: make format" >&2
  exit 1
else
  echo "format: ${#existing[@]} files are formatted"
fi
