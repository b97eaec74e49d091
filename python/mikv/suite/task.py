"""What a task is to the suite, and how its items are answered several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

from .._cli import Progress, UsageError
from .rows import Row, RowLog
from .server import stream

Item = TypeVar("Item")


class Served(Protocol):
    """What a task needs of a server."""

    slots: int

    @property
    def url(self) -> str: ...

    def check(self, seconds: float = 0.0) -> None: ...
    def figures(self) -> dict[str, float | None]: ...


class Task(Protocol):
    """A benchmark that asks a server. `limit` counts the first items; None takes all."""

    def head(self) -> Row:
        """What rows must have been made with to be of the same run."""

    def n_items(self, limit: int | None) -> int: ...

    def scored(self, rows: dict[str, Row], limit: int | None) -> dict[str, Row]:
        """Of the rows that are there, those of the first `limit` items."""

    def run(self, server: Served, log: RowLog, limit: int | None, progress: Progress) -> None:
        """Asks for what the log does not have, and adds it there."""


def answer_each(
    items: Mapping[str, Item], log: RowLog, n_at_once: int, one: Callable[[Item], None], stop: threading.Event,
    progress: Progress,
) -> None:  # fmt: skip
    """Calls one(item) for those that the log lacks, n_at_once at a time. The first error, or Ctrl-C, sets `stop`."""
    missing = [item for name, item in items.items() if name not in log.rows]
    progress.skip(len(items) - len(missing))
    pool = ThreadPoolExecutor(n_at_once)
    try:
        waiting = {pool.submit(one, item) for item in missing}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                progress.step()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=not stop.is_set(), cancel_futures=True)


def ask(server: Served, body: dict[str, Any], stop: threading.Event, seconds: float) -> Generator[str, None, None]:
    """stream() of an answer. UsageError says why the server has ended, if it has."""
    try:
        yield from stream(server.url, body, stop, seconds)
    except UsageError:
        server.check(2.0)
        raise
