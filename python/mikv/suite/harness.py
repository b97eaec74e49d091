"""lm-eval as the suite runs it: its own tasks, on rows of a local folder, quietly."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from .._cli import UsageError, need
from .rows import Row

REMEDY = "pip install './python[suite]'"


def data_folder(data: Path, name: str) -> Path:
    """The folder that load_dataset(name) finds when it runs in `data`."""
    folder = data / name
    if not (folder / "README.md").is_file():
        top = name.split("/")[0]
        raise UsageError(f"{folder} has no README.md with the data set's files; give --data the folder above {top}/")
    return folder


@contextlib.contextmanager
def _quietly_in(folder: Path) -> Iterator[None]:
    """In this folder, where load_dataset() looks for local data sets; without progress bars and log lines of others."""
    before = os.getcwd()
    os.chdir(folder)
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "lm-eval", "asyncio")]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        os.chdir(before)


def evaluate(data: Path, model: Any, tasks: list[str], limit: int | None, n_shots: int | None) -> dict[str, list[Row]]:
    """lm-eval's samples of each task: what was asked, what the model said, and how it was scored."""
    lm_eval = need("lm_eval", REMEDY)
    evaluator = need("lm_eval.evaluator", REMEDY)
    # Its question to git would print an error where the data are in no repository.
    with _quietly_in(data), mock.patch.object(evaluator, "get_git_commit_hash", lambda: None):
        known = need("lm_eval.tasks", REMEDY).TaskManager()
        if unknown := [task for task in tasks if task not in known.all_tasks]:
            raise UsageError(f"lm-eval has no task {', '.join(unknown)}")
        said = lm_eval.simple_evaluate(
            model=model, tasks=tasks, limit=limit, num_fewshot=n_shots, bootstrap_iters=0, log_samples=True,
            task_manager=known, verbosity="CRITICAL",
        )  # fmt: skip
    samples: dict[str, list[Row]] = said["samples"]
    return samples
