"""What a task is to the suite, and how its items are answered several at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .._cli import Progress, UsageError
from .rows import Row, RowLog
from .server import post, stream

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

    def judged(self, by_arm: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
        """The scored rows of all arms, with `correct`, a bool or a share of 1: as they are, if they have it already."""
        return by_arm


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


class CaseTask(Task):
    """A task of cases, each a request of its own. A case has an `id`, and may have a `kind`, which gets a score.

    `made_of` is what answers depend on; rows of other values are of another run.
    """

    def __init__(self, cases: list[Row], made_of: Row, seconds: float = 3600.0) -> None:
        self.cases, self.made_of, self.seconds = cases, made_of, seconds
        self.stop = threading.Event()

    def prepare(self, server: Served, limit: int | None) -> None:
        """Before the first request: for cases that need a server to be made."""

    def answer(self, server: Served, case: Row) -> Row:
        """The fields of a case's row: `correct`, and what it rests on. `seconds` is the whole time if it says nothing."""
        raise NotImplementedError

    def head(self) -> Row:
        return self.made_of

    def first(self, limit: int | None) -> list[Row]:
        """The first cases, of each kind."""
        n_of: Counter[str | None] = Counter()
        first = []
        for case in self.cases:
            n_of[case.get("kind")] += 1
            if limit is None or n_of[case.get("kind")] <= limit:
                first.append(case)
        return first

    def n_items(self, limit: int | None) -> int:
        return len(self.first(limit))

    def scored(self, rows: dict[str, Row], limit: int | None) -> dict[str, Row]:
        return {case["id"]: rows[case["id"]] for case in self.first(limit) if case["id"] in rows}

    def run(self, server: Served, log: RowLog, limit: int | None, progress: Progress) -> None:
        def one(case: Row) -> None:
            begin = time.monotonic()
            row = self.answer(server, case)
            row.setdefault("seconds", round(time.monotonic() - begin, 3))
            if "kind" in case:
                row["kind"] = case["kind"]
            log.add(case["id"], **row, **server.figures())

        self.prepare(server, limit)
        answer_each({case["id"]: case for case in self.first(limit)}, log, server.slots, one, self.stop, progress)


def refuse_twice(path: Path, cases: list[Row], name: str) -> None:
    """UsageError where two lines of a file have the same id in the field `name`."""
    seen: set[str] = set()
    for line, case in enumerate(cases, 1):
        if case[name] in seen:
            raise UsageError(f"{path}:{line}: the {name} {case[name]!r} is there twice; rename one")
        seen.add(case[name])


def ask(server: Served, body: dict[str, Any], stop: threading.Event, seconds: float) -> Generator[str, None, None]:
    """stream() of an answer. UsageError says why the server has ended, if it has."""
    with _or_why_it_ended(server):
        yield from stream(server.url, body, stop, seconds)


def ask_once(server: Served, path: str, body: dict[str, Any], seconds: float) -> Any:
    """post() of an answer; errors as ask()."""
    with _or_why_it_ended(server):
        return post(server.url, path, body, seconds)


def tokens_of(server: Served, text: str, seconds: float) -> list[int]:
    """A text in the model's tokens, as the server reads it in a prompt."""
    asked = {"content": text, "add_special": True, "parse_special": False}
    return [int(token) for token in ask_once(server, "/tokenize", asked, seconds)["tokens"]]


@contextlib.contextmanager
def _or_why_it_ended(server: Served) -> Iterator[None]:
    try:
        yield
    except UsageError:
        server.check(2.0)
        raise
