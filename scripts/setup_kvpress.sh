#!/usr/bin/env bash
# Makes a virtual environment for python -m mikv.kvpress and python -m mikv.lm_eval (docs/python-eval.md):
#
#   scripts/setup_kvpress.sh DIR [REPOSITORY]
#
# kvpress 0.5.5 wants transformers older than 5.3, so that it has an environment of its own. Its evaluation/ folder is in
# its repository, not in its package: REPOSITORY is a clone or an address of it (default: its public one).
# Does nothing, quickly, where all is there; an interrupted run is repeated.
set -euo pipefail

commit=8bb29b9 # evaluation/ as of kvpress 0.5.5
packages=(
  torch==2.13.0 transformers==5.2.0 kvpress==0.5.5 lm_eval==0.4.13 gguf==0.19.0
  accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 pandas==2.3.3 peft==0.21.2
  rouge==1.0.1 nltk==3.10.4 scipy==1.17.1 bert-score==0.3.13 jieba==0.42.1 fuzzywuzzy==0.18.0 # its scorers
  wonderwords==3.0.1 # RULER's words
  pytest==9.2.0
)

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ] || [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  [ $# -ge 1 ] && [ $# -le 2 ] && exit 0 || exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
venv=$(cd "$1" && pwd)
repository=${2:-https://github.com/NVIDIA/kvpress}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"

wanted="${packages[*]}"
if [ "$(cat "$venv/mikv-packages" 2>/dev/null)" != "$wanted" ]; then
  echo "setup_kvpress: installing ${#packages[@]} packages into $venv (some minutes)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" || {
    echo "setup_kvpress: pip failed (above); mend that, then run this again" >&2
    exit 2
  }
  echo "$wanted" >"$venv/mikv-packages"
fi

checkout=$venv/share/kvpress
if [ "$(cat "$checkout/.mikv-commit" 2>/dev/null)" != "$commit" ]; then
  rm -rf "$checkout"
  mkdir -p "$checkout"
  git clone --quiet --no-checkout "$repository" "$checkout.git" || {
    echo "setup_kvpress: no clone of $repository; give a clone of kvpress's repository as the second argument" >&2
    rm -rf "$checkout.git"
    exit 2
  }
  git -C "$checkout.git" archive "$commit" evaluation | tar -x -C "$checkout"
  rm -rf "$checkout.git"
  echo "$commit" >"$checkout/.mikv-commit"
fi

# mikv itself, from this tree; MIKV_LIBRARY names a library that is built already.
if [ -n "${MIKV_LIBRARY:-}" ]; then
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$root/python" >"$site/mikv.pth"
  echo "setup_kvpress: mikv is that of $root/python; set MIKV_LIBRARY when you run it"
else
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$root/python"
fi
"$venv/bin/python" -c 'import kvpress, lm_eval, mikv.hf' || exit 2
echo "setup_kvpress: ready. Try: $venv/bin/python -m mikv.kvpress --help"
