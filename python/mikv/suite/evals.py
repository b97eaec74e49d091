"""LongEval's line retrieval: `mikv eval lines` itself, and the JSON that it writes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from .._cli import UsageError
from .rows import Row, read_rows
from .server import end_with_parent


def run(command: list[str], output: Path) -> None:
    """Runs the command, which keeps its rows beside its output and resumes there. Its progress goes to stderr."""
    process = subprocess.Popen(
        [*command, "-o", str(output)], stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # once: a terminal's own does not reach another session
        process.wait()
        raise
    if code == 130 or code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code != 0:
        raise UsageError("mikv eval lines has failed (above); mend that, and the same command resumes")


def read(output: Path) -> dict[str, dict[str, Row]]:
    """The rows of each arm, by item, of a run that may be unfinished."""
    file = output.with_suffix(".rows.jsonl")
    arms: dict[str, dict[str, Row]] = {}
    if not file.exists():
        return arms
    for line, row in enumerate(read_rows(file, (), whole=False), 1):
        if "part" not in row:
            continue
        try:
            arms.setdefault(row["kv"], {})[str(row["part"])] = {
                "correct": bool(row["correct"]), "bits_per_element": row["bits_per_element"],
                "kv_bytes": row["kv_bytes"], "kv_peak_bytes": row["kv_bytes"], "seconds": row["prefill_s"] + row["timed_s"],
            }  # fmt: skip
        except (KeyError, TypeError) as error:
            raise UsageError(f"{file}:{line}: the field {error} is missing; remove the line") from error
    return arms


def is_complete(output: Path, arms: list[str], wanted: dict[str, Any]) -> bool:
    """Whether the JSON is there, whole and of these arms and settings."""
    try:
        said = json.loads(output.read_text())
        meta, measured = said["meta"], [row["kv"] for row in said["rows"]]
        return not meta.get("interrupted") and measured == arms and all(meta[k] == v for k, v in wanted.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
