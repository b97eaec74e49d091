#!/usr/bin/env bash
# Tests mikv.hf with several versions of Transformers. Needs a build (make). Usage: scripts/test_transformers.sh [VERSION...]
set -uo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ $# -gt 0 ] || versions=(5.2.0 5.17.0 5.23.0 5.24.0)
status=0
for version in "${versions[@]}"; do
  folder=$(scripts/python_env.sh "transformers==$version") || exit 2
  echo "--- transformers $version"
  (cd python && MIKV_LIBRARY=$PWD/../build/src/libmikv.so PYTHONPATH=. OMP_WAIT_POLICY=passive "$folder/bin/python" -m pytest -q -p no:cacheprovider tests) || status=1
done
exit "$status"
