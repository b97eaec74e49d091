#!/usr/bin/env bash
# Makes the virtual environment for the tests of the Python package, once per machine, and prints its folder.
#   scripts/python_env.sh                       what make test uses: python/requirements-test.txt
#   scripts/python_env.sh transformers==5.17.0  the same with other versions (scripts/test_transformers.sh)
#   scripts/python_env.sh --find                prints the folder if it is there; exit code 1 if not
# It is in the cache folder of the project (MIKV_CACHE, else ~/.cache/mikv).
set -euo pipefail
cd "$(dirname "$0")/.."

find_only=
if [ "${1:-}" = --find ]; then
  find_only=1
  shift
fi
requirements=python/requirements-test.txt
cache=${MIKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mikv}
python=${MIKV_PYTHON:-python3}
name=$( (cat "$requirements"; echo "$@"; "$python" -c 'import sys; print(sys.version_info[:2])') | sha256sum | cut -c1-12)
folder=$cache/python/$name

if [ -x "$folder/bin/python" ] && [ -f "$folder/ready" ]; then
  echo "$folder"
  exit 0
fi
[ -z "$find_only" ] || exit 1

fail() {
  echo "mikv: $1" >&2
  exit 2
}
rm -rf "$folder"
mkdir -p "$cache/python"
echo "python_env: making $folder (2 GB, 3 minutes)" >&2
"$python" -m venv "$folder" >&2 ||
  fail "cannot make a virtual environment; install python3-venv, or leave the Python tests out with MIKV_NO_PYTHON=1"
if [ $# -gt 0 ]; then
  # Other versions: what they need follows from them.
  wanted=$(mktemp)
  trap 'rm -f "$wanted"' EXIT
  grep -vE "^(#|transformers|huggingface_hub|tokenizers|accelerate)" "$requirements" >"$wanted"
  printf '%s\n' "$@" >>"$wanted"
  requirements=$wanted
fi
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$requirements" >"$folder/pip.log" 2>&1 || {
  tail -n 5 "$folder/pip.log" >&2
  fail "pip failed (its last lines are above); run this again, or leave the Python tests out with MIKV_NO_PYTHON=1"
}
touch "$folder/ready"
echo "$folder"
