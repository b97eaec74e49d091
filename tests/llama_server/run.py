#!/usr/bin/env python3
"""llama.cpp's own server tests against stock llama-server and against `mikv server`, side by side.

    tests/llama_server/run.py --model FILE --mikv build/bin/mikv [--kv full,mikv] [--files test_basic.py,...] [-o FILE]

A test counts if stock llama-server passes it here. Fails (exit code 1) if `full` fails one of those, or another cache fails
one that is not listed in expected.json with the reason: tests that compare exact text."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
STOCK = "llama:f16"


def llama_build(root: Path) -> tuple[Path, Path]:
    """Source and build folder of the llama.cpp that mikv was built with."""
    lines = dict(line.split("=", 1) for line in (root / "build" / "llama.txt").read_text().splitlines())
    return Path(lines["SOURCE"]), Path(lines["BUILD"])


def python_with_packages(folder: Path) -> Path:
    python = folder / "bin" / "python"
    requirements = HERE / "requirements.txt"
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        print("server tests: installing pytest and what the tests import", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements], check=True)
        shutil.copy(requirements, stamp)
    return python


def server_script(folder: Path, kv: str, mikv: Path, build: Path) -> Path:
    """The program that the tests start."""
    script = folder / f"server-{kv.replace(':', '-').replace(',', '-')}"
    command = f'"{build}/bin/llama-server"' if kv == STOCK else f'"{mikv}" server --kv "{kv}"'
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return script


def run_arm(kv: str, python: Path, tests: Path, script: Path, model: Path, what: list[str], workers: int) -> dict[str, bool]:
    """Test, as pytest names it, -> passed; tests that were skipped are left out."""
    report = tests / f"{script.name}.xml"
    report.unlink(missing_ok=True)
    # Servers of several workers share the cores; threads that spin at barriers would wait for each other's cores.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "LLAMA_SERVER_BIN_PATH": str(script), "MIKV_TEST_MODEL": str(model),
                   "PYTHONPATH": f"{HERE}:{tests}", "LLAMA_CACHE": str(tests / "tmp"), "LLAMA_ARG_OFFLINE": "1"}
    began = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-p", "local_model", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}",
               "--timeout=120", "-n", str(workers), "--dist=worksteal", *what]
    with open(tests / f"{script.name}.log", "w") as log:
        subprocess.run(command, cwd=tests, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if not report.exists():
        sys.exit(f"server tests: pytest did not run with --kv {kv}; see {tests / (script.name + '.log')}")
    results = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        results[f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"] = case.find("failure") is None and case.find("error") is None
    print(f"server tests: {kv}: {sum(results.values())} of {len(results)} passed in {time.monotonic() - began:.0f} s", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--mikv", required=True, type=Path)
    parser.add_argument("--kv", default="full,mikv")
    parser.add_argument("--files", default="", help="test files, all by default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    options = parser.parse_args()
    mikv = options.mikv.resolve()
    model = options.model.resolve()
    source, build = llama_build(mikv.parent.parent.parent)
    work = mikv.parent.parent / "llama-server-tests"
    work.mkdir(exist_ok=True)
    python = python_with_packages(work / "venv")
    tests = work / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(source / "tools" / "server" / "tests", tests)
    shutil.copy2(mikv, work / "mikv")  # a build meanwhile does not disturb
    mikv = work / "mikv"
    files = options.files.split(",") if options.files else sorted(p.name for p in (tests / "unit").glob("test_*.py"))
    expected = json.loads((HERE / "expected.json").read_text())

    stock = run_arm(STOCK, python, tests, server_script(work, STOCK, mikv, build), model, [f"unit/{file}" for file in files], options.workers)
    counted = [name for name, passed in stock.items() if passed]
    if not counted:
        sys.exit("server tests: stock llama-server passed none; something is wrong with the set-up")
    results = {STOCK: stock}
    failures = 0
    for kv in options.kv.split(","):
        results[kv] = run_arm(kv, python, tests, server_script(work, kv, mikv, build), model, counted, options.workers)
        failed = [name for name in counted if not results[kv].get(name)]
        reasons = {} if kv == "full" else expected
        for name in failed:
            reason = reasons.get(name)
            failures += reason is None
            print(f"server tests: {kv} fails {name}" + (f" (expected: {reason})" if reason else ""))
        print(f"server tests: {kv}: {len(counted) - len(failed)} of the {len(counted)} tests that stock llama-server passes")
    if options.output:
        options.output.write_text(json.dumps({"counted": counted, "results": results}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
