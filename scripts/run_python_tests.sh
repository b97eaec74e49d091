#!/usr/bin/env bash
# Runs the tests of the Python package against a built library. Usage: scripts/run_python_tests.sh LIBMIKV [PYTEST ARGUMENTS]
# Exit code 77: left out, because MIKV_NO_PYTHON is set or the environment was not made (scripts/python_env.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
library=$1
shift
if [ -n "${MIKV_NO_PYTHON:-}" ]; then
  echo "mikv: the Python tests are left out: MIKV_NO_PYTHON is set"
  exit 77
fi
folder=$(scripts/python_env.sh --find) || {
  echo "mikv: the Python tests are left out: run scripts/python_env.sh first, as make test does"
  exit 77
}
cd python
MIKV_LIBRARY=$library PYTHONPATH=. exec "$folder/bin/python" -m pytest -q -p no:cacheprovider tests "$@"
