"""What a task is to the suite, and how its items are answered several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from .._cli import Progress
from .rows import Row, RowLog

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
    n_at_once: int, items: Sequence[Item], one: Callable[[Item], None], stop: threading.Event, progress: Progress
) -> None:
    """Calls one(item) for all items, n_at_once at a time. The first error, or Ctrl-C, sets `stop` and ends it."""
    pool = ThreadPoolExecutor(n_at_once)
    try:
        waiting = {pool.submit(one, item) for item in items}
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
