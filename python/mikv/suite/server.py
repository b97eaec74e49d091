"""`mikv server` with one cache, for as long as a `with` lasts, and what it says of itself."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from .._cli import UsageError

_START_SECONDS = 300
_REPORT_SECONDS = 0.25


def find_command(named: str | None) -> str:
    """The mikv command: the one that is named, MIKV_BINARY, this tree's, or that of the PATH."""
    named = named or os.environ.get("MIKV_BINARY")
    built = Path(__file__).resolve().parents[3] / "build" / "bin" / "mikv"
    found = shutil.which(named) if named else (str(built) if os.access(built, os.X_OK) else shutil.which("mikv"))
    if found is None:
        raise UsageError(f"{named or 'mikv'} is no command here; build it with make, or give --mikv FILE")
    return found


def estimate(
    command: str, model: str, kv: list[str], n_tokens: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The meta data of `mikv estimate`, and what it says of each cache. It refuses what is no model or no spec."""
    asked = [command, "estimate", "-m", model, "-c", str(n_tokens), "--kv", ",".join(kv), "--json"]
    done = subprocess.run(asked, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"mikv estimate ended with {done.returncode}"])[-1]
        raise UsageError(last.removeprefix("mikv: "))
    said = json.loads(done.stdout)
    return said["meta"], {row["kv"]: row for row in said["rows"]}


_LIBC = ctypes.CDLL(None)
_PR_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent() -> None:
    """For a child that has a session of its own: it ends when this process is killed."""
    _LIBC.prctl(_PR_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def cache_options(kv: str) -> list[str]:
    """Options of `mikv server` for a cache. llama.cpp chooses its own cache's type by its own options."""
    if not kv.startswith("llama:"):
        return ["--kv", kv]
    kind = kv.removeprefix("llama:")
    return ["--kv", "llama:f16", *([] if kind == "f16" else ["-ctk", kind, "-ctv", kind, "-fa", "on"])]


class Server:
    """A server on a free port of this machine, and its report."""

    def __init__(self, command: str, model: str, kv: str, threads: int | None, slots: int, n_ctx: int) -> None:
        self.kv, self.slots, self.n_ctx = kv, slots, n_ctx
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="mikv-suite-"))
        self._log = open(self.folder / "log", "w")  # noqa: SIM115  the process has it
        self._report = self.folder / "report.json"
        # An answer depends on its own prompt alone: no prefix of another prompt is reused, in slots or from memory.
        flags = ["-c", str(n_ctx * slots), "-np", str(slots), "--no-cache-prompt", "--cache-ram", "0", "--no-webui"]
        self._process = subprocess.Popen(
            [command, "server", "-m", model, *cache_options(kv), "--kv-report", str(self._report), "--host", "127.0.0.1",
             "--port", str(self.port), *(["-t", str(threads)] if threads else []), *flags],
            stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent, start_new_session=True,
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")},
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < _START_SECONDS:
            self.check()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=10):
                    return
            except OSError:
                time.sleep(0.1)
        raise UsageError(f"mikv server --kv {self.kv} did not start within {_START_SECONDS} s; try a smaller --ctx")

    def check(self, seconds: float = 0.0) -> None:
        """UsageError with the log's last line if the server has ended, or ends within so many seconds."""
        if seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        if self._process.poll() is not None:
            lines = [x.strip() for x in (self.folder / "log").read_text(errors="replace").splitlines() if x.strip()]
            own = [line for line in lines if line.startswith("mikv:")] or lines or ["it says nothing"]
            raise UsageError(
                f"mikv server --kv {self.kv} has ended ({own[-1].removeprefix('mikv: ')}); mend that, and the same command resumes"
            )

    def stop(self) -> None:
        for number, seconds in ((signal.SIGINT, 20), (signal.SIGKILL, 20)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def figures(self) -> dict[str, float | None]:
        """Bits per element and bytes that the cache takes now, of its report; None for a stock cache, which has none.

        Waits until the report has what the last step changed: it follows within a fifth of a second.
        """
        if not self.kv.startswith("llama:"):
            time.sleep(_REPORT_SECONDS)
        try:
            said = json.loads(self._report.read_text())
        except (OSError, ValueError):
            return {"bits_per_element": None, "kv_bytes": None, "kv_peak_bytes": None}
        bits = said["kv_bits_per_element"] if said["kv_tokens"] else None
        return {"bits_per_element": bits, "kv_bytes": said["kv_bytes"], "kv_peak_bytes": said["kv_peak_bytes"]}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def _open(url: str, path: str, body: dict[str, Any], seconds: float) -> Iterator[Any]:
    """The server's answer to a request. UsageError says why there is none."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(said)["error"]["message"]
        raise UsageError(f"the server refused a prompt ({error.code}: {said}); try a larger --ctx") from error
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"the server at {url} does not answer ({error}); the same command resumes") from error


def stream(url: str, body: dict[str, Any], stop: threading.Event, seconds: float) -> Generator[str, None, None]:
    """The pieces of an answer to a prompt or to a chat's messages, as they come. Closing the iterator ends the request.

    UsageError where the answer is cut off: what came of it is not to be scored.
    """
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    with _open(url, path, body | {"stream": True}, seconds) as answer:
        for line in answer:
            if stop.is_set():
                raise KeyboardInterrupt
            if not line.startswith(b"data:") or not line.endswith(b"\n"):  # a last line without an end is cut off
                continue
            said = line[5:].strip()
            if said == b"[DONE]":
                return
            yield _piece(json.loads(said))
        raise UsageError(f"the server at {url} stopped in the middle of an answer; the same command resumes")


def post(url: str, path: str, body: dict[str, Any], seconds: float) -> Any:
    """The JSON that the server answers."""
    with _open(url, path, body, seconds) as answer:
        text = answer.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"the server's answer to {path} is no JSON: {text[:200]!r}") from error


def _piece(event: Any) -> str:
    if isinstance(event, dict) and "error" in event:
        raise UsageError(f"the server stopped an answer ({event['error']}); try a larger --ctx")
    try:
        choice = event["choices"][0]
        return str(choice.get("text") or choice.get("delta", {}).get("content") or "")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"the server's answer has no text in choices[0]: {json.dumps(event)[:200]}") from error
