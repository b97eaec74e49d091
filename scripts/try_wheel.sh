#!/usr/bin/env bash
# Installs the wheel of dist/ into a fresh environment, without a compiler, and runs the ten lines of docs/python.md there.
# Usage: scripts/try_wheel.sh PYTHON [TORCH, such as torch==2.13.0]. Prints the seconds of both.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "try_wheel: name a Python, such as python3.12" >&2; exit 2; }
wheels=(dist/mikv-*.whl)
[ -f "${wheels[0]}" ] || { echo "try_wheel: there is no wheel; run scripts/build_wheel.sh first" >&2; exit 2; }
model=$(python3 scripts/fetch_package.py get smollm2-135m)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1" - docs/python.md "$model" >"$folder/ten_lines.py" <<'PYTHON'
import pathlib, re, sys
page, model = pathlib.Path(sys.argv[1]).read_text(), pathlib.Path(sys.argv[2])
lines = re.search(r"## Ten lines\n\n```python\n(.*?)```", page, re.S)[1]
print(lines.replace('"models", "smollm2-135m.gguf"', f'"{model.parent}", "{model.name}"'))
PYTHON
begin=$SECONDS
"$1" -m venv "$folder/env"
CC=/bin/false CXX=/bin/false "$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "${wheels[0]}[hf,gguf]" "${@:2}" 2>/dev/null
installed=$SECONDS
"$folder/env/bin/python" "$folder/ten_lines.py" 2>"$folder/errors" || { tail -3 "$folder/errors" >&2; exit 1; }
echo "try_wheel: $("$folder/env/bin/python" --version): installed in $((installed - begin)) s, ten lines in $((SECONDS - installed)) s"
