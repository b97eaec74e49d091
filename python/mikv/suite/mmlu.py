"""MMLU: lm-eval's own tasks, with choices scored through the cache (choices.py)."""

from __future__ import annotations

import math
import threading
from pathlib import Path

from .._cli import Progress, UsageError
from .choices import choices_model
from .harness import data_folder, evaluate
from .rows import Row, RowLog, digest, read_rows
from .task import Served, Task

_N_CHOICES = 4


def check_data(data: Path, subjects: list[str] | None) -> dict[str, list[Row]]:
    """The questions of each subject that is asked for, or there. UsageError names the file and line of a broken one."""
    folder = data_folder(data, "cais/mmlu")
    there = sorted(path.parent.name for path in folder.glob("*/test.jsonl"))
    unknown = [subject for subject in subjects or () if subject not in there]
    if unknown or not there:
        raise UsageError(
            f"{folder} has no {unknown[0] if unknown else '*'}/test.jsonl; there are: {', '.join(there) or 'none'}"
        )
    questions = {}
    for subject in subjects or there:
        _check_rows(folder / subject / "dev.jsonl")
        questions[subject] = _check_rows(folder / subject / "test.jsonl")
    return questions


def _check_rows(file: Path) -> list[Row]:
    rows = read_rows(file, ("question",))
    for line, row in enumerate(rows, 1):
        choices = row.get("choices")
        if not isinstance(choices, list) or len(choices) != _N_CHOICES or not all(isinstance(x, str) for x in choices):
            raise UsageError(
                f"{file}:{line}: the field 'choices' is no list of {_N_CHOICES} texts; mend or remove the line"
            )
        if row.get("answer") not in range(_N_CHOICES):
            raise UsageError(
                f"{file}:{line}: the field 'answer' is none of 0 to {_N_CHOICES - 1}; mend or remove the line"
            )
    return rows


def _log_likelihood(row: Row) -> float:
    """Of the right choice among the four, in nats: it moves where the answer does not."""
    choices = [log_probability for _, log_probability in sorted(row["log_probabilities"].items())]
    return choices[row["target"]] - math.log(math.fsum(map(math.exp, choices)))


class Mmlu(Task):
    """One arm's choices by lm-eval's tasks `mmlu_SUBJECT`. `limit` counts questions of each subject."""

    def __init__(self, data: Path, subjects: list[str] | None, n_shots: int, seconds: float = 3600.0) -> None:
        self.data, self.n_shots, self.seconds = data, n_shots, seconds
        self.questions = check_data(data, subjects)
        self.stop = threading.Event()

    def head(self) -> Row:
        return {"shots": self.n_shots}

    def n_items(self, limit: int | None) -> int:
        return sum(len(rows[:limit]) for rows in self.questions.values())

    def scored(self, rows: dict[str, Row], limit: int | None) -> dict[str, Row]:
        def counts(row: Row) -> bool:
            return row.get("kind") in self.questions and (limit is None or row["doc"] < limit)

        return {item: row for item, row in rows.items() if counts(row)}

    def judged(self, by_arm: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
        return {
            arm: {item: row | {"log_likelihood": _log_likelihood(row)} for item, row in rows.items()}
            for arm, rows in by_arm.items()
        }

    def run(self, server: Served, log: RowLog, limit: int | None, progress: Progress) -> None:
        tasks = {f"mmlu_{subject}": subject for subject in self.questions}
        model = choices_model(server, log, progress, self.stop, self.seconds)
        samples = evaluate(self.data, model, list(tasks), limit, self.n_shots)
        log.update(
            {
                digest(sample["arguments"][0][0]): {
                    "kind": subject, "doc": sample["doc_id"], "target": sample["target"], "correct": bool(sample["acc"] == 1.0),
                }
                for task, subject in tasks.items()
                for sample in samples[task]
            }
        )  # fmt: skip
