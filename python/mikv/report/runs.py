"""The JSON files that `mikv eval`, `mikv bench`, `mikv tune` and python -m mikv.compare write, read alike."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._cli import UsageError

_REMEDY = (
    "give a file that `mikv eval`, `mikv bench`, `mikv tune` or python -m mikv.compare wrote with -o, or the summary.json "
    "of `mikv eval suite`"
)

#: Which rows are simulations, other programs' caches and ours.
KINDS = ("mikv", "peer", "simulated")


@dataclass
class Point:
    """A row of any command; None is what it did not measure."""

    cache: str
    kind: str  #: one of KINDS
    task: str | None  #: of a run of several
    bits: float | None  #: per element
    kld: float | None  #: mean, in nats
    score: float | None  #: share of right answers
    score_bits: float | None  #: bits per element of the prompts that were scored
    n_scored: int | None
    bytes: float | None
    bytes_by_part: dict[str, float]
    at: float | None  #: tokens in the cache
    speed: float | None  #: tokens per second
    ns: float | None  #: nanoseconds of attention per token and KV head


@dataclass
class Run:
    path: Path
    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    not_run: list[str]
    points: list[Point]

    @property
    def title(self) -> str:
        command = str(self.meta.get("command", self.path.stem))
        if command.startswith("python -m "):
            command = command.split()[2]
        model = self.meta.get("model")
        return f"{command}: {Path(str(model)).name}" if model else command

    @property
    def command_line(self) -> str:
        return str(self.meta.get("command_line") or self.meta.get("command") or "not recorded")


def read(path: Path) -> Run:
    """Raises UsageError, with the file's name, if it is no run."""
    try:
        text = path.read_bytes().decode("utf-8")
        document = _finite(json.loads(text))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON file ({error}); {_REMEDY}") from error
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise UsageError(f"{path} has no rows; {_REMEDY}")
    meta, rows = document.get("meta"), document["rows"]
    if not isinstance(meta, dict):
        raise UsageError(f"{path} does not say how it was made (no meta); {_REMEDY}")
    if not rows:
        raise UsageError(f"{path} has no rows yet: the run was interrupted before its first result; run it again")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("cache", row.get("kv")), str):
            raise UsageError(f"{path} has a row that names no cache; {_REMEDY}")
    missing = document.get("not_run")
    reasons = [str(m.get("reason", m.get("peer"))) for m in missing if isinstance(m, dict)] if missing else []
    return Run(path, meta, rows, reasons, [_point(row) for row in rows])


def _point(row: dict[str, Any]) -> Point:
    name = str(row.get("cache", row.get("kv")))
    kind = row.get("kind")
    if kind not in KINDS:
        kind = "peer" if name.startswith("llama:") else "mikv"
    asked = number(row, "lines_asked")
    right = number(row, "lines_right")
    score = right / asked if asked and right is not None else number(row, "score")
    parts = row.get("bytes_by_part")
    bits = number(row, "bits_per_element")
    kld = next((x for key in ("kld_mean", "mean_kld", "mean") if (x := number(row, key)) is not None), None)
    task = row.get("task")
    n = asked or number(row, "n")
    return Point(
        cache=name,
        kind=kind,
        task=str(task) if task else None,
        bits=bits,
        kld=kld,
        score=score,
        score_bits=number(row, "lines_bits_per_element") or bits,
        n_scored=int(n) if n is not None and score is not None else None,
        bytes=number(row, "bytes"),
        bytes_by_part={k: v for k in parts if (v := number(parts, k))} if isinstance(parts, dict) else {},
        at=number(row, "depth") if "depth" in row else number(row, "n_tokens"),
        speed=number(row, "tokens_per_s"),
        ns=number(row, "ns_per_token_head"),
    )


def number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _finite(x: Any) -> Any:
    """The same without NaN and infinity, which JSON has not and Python reads all the same."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, list):
        return [_finite(y) for y in x]
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    return x
