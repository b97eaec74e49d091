"""AlpacaEval's instructions: answers in its form, and how far they agree with those of the full cache.

AlpacaEval's own score needs a judge with a key. What a cache changes needs none: greedy answers of the same model differ
from those of `full` only by it.
"""

from __future__ import annotations

import json
from pathlib import Path

from .._cli import Progress, UsageError
from .._files import write_whole
from .rows import Row, RowLog, digest
from .summary import REFERENCE
from .task import CaseTask, Served, ask

_NO_DATA = "alpaca_eval"  #: AlpacaEval's name for a row without a `dataset`


def instructions(file: Path) -> list[Row]:
    """The rows of a JSON list, in the form of AlpacaEval's data set and of its outputs. UsageError names a broken one."""
    try:
        rows = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is no JSON ({error}); give AlpacaEval's instructions, a list of objects") from error
    if not isinstance(rows, list) or not rows:
        raise UsageError(f'{file} is no list of instructions; give AlpacaEval\'s, [{{"instruction": ...}}, ...]')
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
            raise UsageError(f"{file}: item {i} has no text in the field 'instruction'; mend or remove it")
    return [
        {"id": str(i), "instruction": row["instruction"], "dataset": str(row.get("dataset", _NO_DATA))}
        for i, row in enumerate(rows)
    ]


def common_words(ours: str, theirs: str) -> float:
    """The share of their words until the first that differs."""
    a, b = ours.split(), theirs.split()
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return n / max(len(a), len(b), 1)


class Alpaca(CaseTask):
    """Greedy answers through the chat of a server. `outputs.json` of an arm is what `alpaca_eval` reads."""

    def __init__(self, cases: list[Row], n_predict: int, seconds: float = 3600.0) -> None:
        texts = json.dumps([case["instruction"] for case in cases])
        super().__init__(cases, {"predict": n_predict, "instructions": digest(texts)}, seconds)
        self.n_predict = n_predict

    def answer(self, server: Served, case: Row) -> Row:
        asked = {
            "messages": [{"role": "user", "content": case["instruction"]}], "max_tokens": self.n_predict,
            "temperature": 0, "seed": 1,
        }  # fmt: skip
        return {"answer": "".join(ask(server, asked, self.stop, self.seconds))}

    def run(self, server: Served, log: RowLog, limit: int | None, progress: Progress) -> None:
        try:
            super().run(server, log, limit, progress)
        finally:
            outputs = [
                {"instruction": case["instruction"], "output": log.rows[case["id"]]["answer"],
                 "generator": f"{log.head['model']}, {log.head['kv']}", "dataset": case["dataset"]}
                for case in self.first(limit) if case["id"] in log.rows
            ]  # fmt: skip
            write_whole(log.path.with_suffix(".outputs.json"), json.dumps(outputs, indent=1) + "\n")

    def judged(self, by_arm: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
        full = by_arm.get(REFERENCE, {})

        def against_full(item: str, row: Row) -> Row:
            ours, theirs = row["answer"].strip(), full[item]["answer"].strip()
            return row | {
                "correct": ours == theirs, "common_words": common_words(ours, theirs), "n_words": len(ours.split()),
            }  # fmt: skip

        return {
            arm: {item: against_full(item, row) for item, row in rows.items() if item in full}
            for arm, rows in by_arm.items()
        }
