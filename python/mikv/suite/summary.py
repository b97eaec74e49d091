"""Scores of arms: a row for each task and arm, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .._cli import seconds
from .rows import Row
from .statistics import difference, paired, wilson

REFERENCE = "full"
#: Fields of items, and the columns that have their means.
_MORE_SCORES = (
    ("strict_match", "strict_score"), ("equal_number", "equal_number_score"), ("common_words", "common_words"),
    ("n_words", "mean_words"), ("kld", "mean_kld"), ("log_likelihood", "log_likelihood"),
)  # fmt: skip


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def task_rows(task: str, arms: dict[str, dict[str, Row]], estimates: dict[str, dict[str, Any]]) -> list[Row]:
    """A row for each arm that has answers. An item is right by a bool, or by a share of 1.

    Stock types have no report: their bits and bytes are those of the estimate.
    """
    correct = {
        arm: {k: float(row["correct"]) for k, row in rows.items() if "correct" in row} for arm, rows in arms.items()
    }
    likely = {
        arm: {k: row["log_likelihood"] for k, row in rows.items() if "log_likelihood" in row}
        for arm, rows in arms.items()
    }
    out = []
    for arm, answers in correct.items():
        if not answers:
            continue
        rows = [arms[arm][item] for item in answers]
        n, n_correct = len(answers), math.fsum(answers.values())
        peaks = [row["kv_peak_bytes"] for row in rows if row.get("kv_peak_bytes") is not None]
        measured = _mean(rows, "bits_per_element") is not None
        estimate = estimates.get(arm, {}) if arm.startswith("llama:") else {}
        row: Row = {
            "task": task, "kv": arm, "score": n_correct / n, "n": n, "correct": int(n_correct) if n_correct.is_integer() else round(n_correct, 4),
            "interval": list(wilson(n_correct, n)),
            "versus_full": paired(answers, correct[REFERENCE]) if correct.get(REFERENCE) and arm != REFERENCE else None,
            "bits_per_element": _mean(rows, "bits_per_element") if measured else estimate.get("bits_per_element"),
            "kv_bytes": _mean(rows, "kv_bytes") if measured else estimate.get("bytes"),
            "kv_peak_bytes": max(peaks) if measured and peaks else estimate.get("bytes"),
            "measured": measured, "seconds": sum(row.get("seconds") or 0.0 for row in rows),
        }  # fmt: skip
        for name, column in _MORE_SCORES:
            if all(name in r for r in rows):
                row[column] = sum(r[name] for r in rows) / n
        if likely[arm] and row["versus_full"]:
            row["versus_full"]["log_likelihood"] = difference(likely[arm], likely[REFERENCE])
        out.append(row)
    return out


def rows_by_kind(task: str, arms: dict[str, dict[str, Row]], estimates: dict[str, dict[str, Any]]) -> list[Row]:
    """task_rows(), a task for each kind where items have kinds, and one of all kinds together."""
    out = []
    kinds = dict.fromkeys(row.get("kind") for rows in arms.values() for row in rows.values())
    for kind in kinds:
        of_kind = {arm: {k: row for k, row in rows.items() if row.get("kind") == kind} for arm, rows in arms.items()}
        out += task_rows(f"{task}: {kind}" if kind else task, of_kind, estimates)
    return out + task_rows(task, arms, estimates) if len(kinds) > 1 else out


def is_estimated(row: Row) -> bool:
    return not row["measured"] and row["bits_per_element"] is not None


def _cells(row: Row) -> list[str]:
    low, high = row["interval"]
    versus = row["versus_full"]
    bits, held = row["bits_per_element"], row["kv_bytes"]
    mark = "*" if is_estimated(row) else ""
    return [
        row["task"], row["kv"], f"{100 * row['score']:.1f} %", f"{row['correct']:.4g}/{row['n']}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"-{versus['lost']} +{versus['won']}" if versus else "-", f"{versus['p']:.4f}" if versus else "-",
        "-" if bits is None else f"{bits:.2f}{mark}", "-" if held is None else f"{held / 2**20:.2f}{mark}",
        seconds(row["seconds"]),
    ]  # fmt: skip


def table(rows: list[Row]) -> str:
    head = ["task", "kv", "score", "correct", "95 % interval", "to full", "p", "bits/element", "KV MiB", "time"]
    cells = [head, *(_cells(row) for row in rows)]
    if any("mean_kld" in row for row in rows):
        cells[0].append("mean KLD")
        for line, row in zip(cells[1:], rows, strict=True):
            line.append(f"{row['mean_kld']:.4f}" if "mean_kld" in row else "-")
    if any("log_likelihood" in row for row in rows):
        cells[0] += ["ln p(right)", "to full"]
        for line, row in zip(cells[1:], rows, strict=True):
            apart = (row["versus_full"] or {}).get("log_likelihood")
            line.append(f"{row['log_likelihood']:.4f}" if "log_likelihood" in row else "-")
            line.append(f"{apart['mean']:+.4f} (error {apart['standard_error']:.4f})" if apart else "-")
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    if any(map(is_estimated, rows)):
        lines.append(
            "* as llama.cpp allocates it for the whole context; the others are measured at the end of each answer"
        )
    return "\n".join(lines)


def unused(rows: list[Row]) -> list[str]:
    """Warnings of tasks whose prompts a cache did not compress: their scores say nothing about it."""
    return [
        f"{row['task']}, {row['kv']}: {row['bits_per_element']:.1f} bits per element, so that its scores say little about "
        "the cache: a prompt of fewer than 256 tokens is not compressed"
        + ("; --humaneval-shots 3 makes prompts longer" if row["task"] == "humaneval" else "")
        for row in rows
        if row["kv"] not in (REFERENCE, "llama:f16") and row["measured"] and (row["bits_per_element"] or 0.0) > 14
    ]
