"""GSM8K: lm-eval's own task and its model local-completions, against `mikv server`."""

from __future__ import annotations

import time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from .._cli import Progress, UsageError, need
from .harness import REMEDY, data_folder, evaluate
from .rows import Row, RowLog, digest, read_rows
from .task import Served, Task

#: lm-eval's filters. The first one gives the score.
_FILTERS = ("flexible-extract", "strict-match")


def check_data(data: Path) -> dict[str, list[Row]]:
    """The rows that load_dataset() finds in this folder. UsageError names the file and line of a broken one."""
    folder = data_folder(data, "openai/gsm8k")
    parts = {}
    for part in ("train", "test"):
        file = folder / "main" / f"{part}.jsonl"
        parts[part] = read_rows(file, ("question", "answer"))
        for line, row in enumerate(parts[part], 1):
            if "#### " not in row["answer"]:
                raise UsageError(f"{file}:{line}: the field 'answer' has no '#### NUMBER'; mend or remove the line")
    return parts


class _Kept:
    """Takes the place of lm-eval's cache: each answer becomes a row when it comes."""

    def __init__(self, server: Served, log: RowLog, progress: Progress) -> None:
        self._server, self._log, self._progress = server, log, progress
        self._last = time.monotonic()

    def add_partial(self, _: str, request: tuple[str, Any], answer: str) -> None:
        now = time.monotonic()
        self._log.add(digest(request[0]), answer=answer, seconds=round(now - self._last, 3), **self._server.figures())
        self._last = time.monotonic()  # without the wait for the report
        self._progress.step()


def _why(error: Exception, url: str) -> str:
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status == 400:
        return f"the server refused a prompt ({error}); give a larger --ctx"
    return f"the server at {url} does not answer ({error or type(error).__name__}); the same command resumes"


def _model(server: Served, log: RowLog, progress: Progress, seconds: float) -> Any:
    """lm-eval's local-completions that asks for what the rows do not have."""
    completions = need("lm_eval.models.openai_completions", REMEDY).LocalCompletionsAPI

    class Resuming(completions):  # type: ignore[misc, valid-type]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            prompts = [request.args[0] for request in requests]
            missing = [r for r in requests if digest(r.args[0]) not in log.rows]
            progress.skip(len(requests) - len(missing))
            if missing:
                self.cache_hook = _Kept(server, log, progress)
                try:
                    super().generate_until(missing, disable_tqdm=True)
                except Exception as error:
                    server.check(2.0)
                    raise UsageError(_why(error, server.url)) from error
            return [log.rows[digest(prompt)]["answer"] for prompt in prompts]

    return Resuming(
        model="mikv", base_url=f"{server.url}/v1/completions", tokenizer_backend=None, num_concurrent=server.slots,
        max_retries=2, timeout=int(seconds),
    )  # fmt: skip


class Gsm8k(Task):
    """One arm's answers by lm-eval's task `gsm8k`: five examples, greedy, at most 256 tokens."""

    def __init__(self, data: Path, n_shots: int | None, seconds: float = 3600.0) -> None:
        self.data, self.n_shots, self.seconds = data, n_shots, seconds
        self.parts = check_data(data)

    def head(self) -> Row:
        return {"shots": self.n_shots}

    def n_items(self, limit: int | None) -> int:
        return len(self.parts["test"][:limit])

    def scored(self, rows: dict[str, Row], limit: int | None) -> dict[str, Row]:
        return {k: row for k, row in rows.items() if "doc" in row and (limit is None or row["doc"] < limit)}

    def run(self, server: Served, log: RowLog, limit: int | None, progress: Progress) -> None:
        model = _model(server, log, progress, self.seconds)
        samples = evaluate(self.data, model, ["gsm8k"], limit, self.n_shots)
        log.update(scores(samples["gsm8k"]))


def equal_numbers(a: str, b: str) -> bool:
    """Whether two texts are the same number: lm-eval compares texts, and says no to 29.00 for 29."""
    try:
        x, y = (Decimal(text.strip().rstrip(".").replace(",", "").replace("$", "")) for text in (a, b))
    except InvalidOperation:
        return False
    return x == y


def scores(samples: list[Row]) -> dict[str, Row]:
    """What lm-eval's filters say of each answer, by the key of its prompt."""
    rows: dict[str, Row] = {}
    for sample in samples:
        row = rows.setdefault(digest(sample["arguments"][0][0]), {"doc": sample["doc_id"], "target": sample["target"]})
        right = bool(sample["exact_match"] == 1.0)  # may be one of NumPy
        row[sample["filter"].replace("-", "_")] = right
        if sample["filter"] == _FILTERS[0]:
            row["correct"] = right
            row["equal_number"] = right or equal_numbers(
                sample["filtered_resps"][0], sample["target"].split("#### ")[-1]
            )
    return rows
