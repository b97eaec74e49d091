"""RULER's synthetic tasks of 4,096 tokens: rows of mikv.ruler, lm-eval's score, counted in the model's own tokens."""

from __future__ import annotations

from types import SimpleNamespace

from .. import ruler
from .._cli import need
from .harness import REMEDY
from .rows import Row
from .task import CaseTask, Served, ask, tokens_of

#: Rows of each task where no --limit is given.
N_ROWS = 50
LENGTH = 4096  #: tokens of prompt and answer


class Ruler(CaseTask):
    """Rows are made before the first request: the server's tokenizer says how long they are. A score is the share of the
    row's answers that are found."""

    def __init__(self, seed: int, n_rows: int, seconds: float = 3600.0) -> None:
        cases = [{"id": f"{task}/{i}", "kind": task} for i in range(n_rows) for task in ruler.TASKS]
        super().__init__(cases, {"seed": seed}, seconds)
        self.seed = seed

    def prepare(self, server: Served, limit: int | None) -> None:
        def tokenizer(text: str) -> SimpleNamespace:
            return SimpleNamespace(input_ids=tokens_of(server, text, self.seconds))

        cases = self.first(limit)
        if all("context" in case for case in cases):
            return  # of the arm before
        for task in ruler.TASKS:
            of_task = [case for case in cases if case["kind"] == task]
            rows = ruler.rows_of(task, tokenizer, LENGTH, len(of_task), self.seed)
            for case, row in zip(of_task, rows, strict=True):
                case.update(row)

    def answer(self, server: Served, case: Row) -> Row:
        asked = {
            "prompt": case["context"] + case["question"] + case["answer_prefix"], "max_tokens": case["max_new_tokens"],
            "temperature": 0, "seed": 1,
        }  # fmt: skip
        answer = "".join(ask(server, asked, self.stop, self.seconds))
        score = need("lm_eval.tasks.ruler.common_utils", REMEDY)
        correct = score.string_match_all(score.postprocess_pred([answer]), [case["answer"]])
        return {"answer": answer, "wanted": case["answer"], "correct": correct}
