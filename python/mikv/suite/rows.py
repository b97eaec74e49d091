"""Rows as JSON lines: inputs that are checked, and results that are kept as they come."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._cli import UsageError
from .._files import write_whole

Row = dict[str, Any]


def read_rows(path: Path, texts: Iterable[str], whole: bool = True) -> list[Row]:
    """The objects of a JSON-lines file, each with these fields of text. UsageError names file and line.

    A last line without its end is left out if not `whole`: it was being written when a run was killed.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: this is no UTF-8; save the file as UTF-8") from error
    lines = content.split("\n")  # not splitlines(), which also splits at characters that JSON allows inside of texts
    if not whole:
        lines = lines[:-1]
    rows = [_row(f"{path}:{i}", line, texts) for i, line in enumerate(lines, 1) if line.strip()]
    if whole and not rows:
        raise UsageError(f"{path}:1: the file is empty; it needs one JSON object per line")
    return rows


def digest(text: str) -> str:
    """Few characters that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(place: str, line: str, texts: Iterable[str]) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place}: this is no JSON ({error}); mend or remove the line") from error
    if not isinstance(row, dict):
        raise UsageError(f"{place}: this is no JSON object; mend or remove the line")
    for name in texts:
        if not isinstance(row.get(name), str):
            said = "is missing" if name not in row else "is no text"
            raise UsageError(f"{place}: the field {name!r} {said}; mend or remove the line")
    return row


class RowLog:
    """The rows of one task and arm in a file: a head that says what they are of, then one line per item.

    Rows that are there are read first, so that an interrupted run resumes. Threads may add rows.
    """

    def __init__(self, path: Path, head: Row) -> None:
        self.path, self.head = path, head
        self.rows: dict[str, Row] = {}
        self._lock = threading.Lock()
        if path.exists() and path.stat().st_size:
            self._read()
        self._write_all()  # what a killed run left of a line goes

    def _read(self) -> None:
        head, *rows = read_rows(self.path, (), whole=False) or [{}]
        old = head.get("rows_of")
        if not old:
            raise UsageError(f"{self.path}:1: these are no rows of mikv.suite; move the file or choose another -o")
        differs = [f"{k} was {old.get(k)}" for k, v in self.head.items() if old.get(k) != v]
        if differs:
            raise UsageError(f"{self.path} is of another run ({'; '.join(differs)}); move it or choose another -o")
        for line, row in enumerate(rows, 2):
            if not isinstance(row.get("item"), str):
                raise UsageError(f"{self.path}:{line}: the field 'item' is missing; remove the line to run it again")
            self.rows[row["item"]] = row

    def _write_all(self) -> None:
        lines = [{"rows_of": self.head}, *self.rows.values()]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, item: str, **values: Any) -> None:
        """Keeps a row; it is in the file when this returns."""
        row = {"item": item, **values}
        with self._lock:
            self.rows[item] = row
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def update(self, values: dict[str, Row]) -> None:
        """Adds fields to rows, by item."""
        with self._lock:
            for item, more in values.items():
                self.rows[item] = self.rows[item] | more
            self._write_all()
