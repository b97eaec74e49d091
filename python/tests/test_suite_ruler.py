"""The task `ruler4k` of mikv.suite: rows counted in the model's tokens, and shares as scores."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from test_suite import fake_server, here, place  # noqa: F401  place is a fixture

from mikv import ruler
from mikv._cli import Progress
from mikv.suite import ruler4k
from mikv.suite.rows import RowLog
from mikv.suite.summary import table, task_rows


def test_it_wants_room(place, capsys):  # noqa: F811
    assert here(place, "--tasks", "ruler4k", "--kv", "full", "--ctx", "2048") == 2
    assert "--ctx 2048: ruler4k needs 4096 tokens" in capsys.readouterr().err


def rows_of_needles(task, tokenizer, length, n, seed):
    assert length == 4096 and len(tokenizer("two words").input_ids) == 2
    return [
        {"context": f"needle a{seed} and needle b{i}. ", "question": f"{task}?", "answer_prefix": " The",
         "answer": [f"a{seed}", f"B{i}", "c"], "max_new_tokens": 9} for i in range(n)
    ]  # fmt: skip


def test_shares_of_answers(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ruler, "rows_of", rows_of_needles)

    def match_all(preds, refs):  # as lm-eval's
        return sum(r.lower() in preds[0].lower() for r in refs[0]) / len(refs[0])

    score = SimpleNamespace(string_match_all=match_all, postprocess_pred=lambda texts: texts)
    monkeypatch.setattr(ruler4k, "need", lambda *_: score)
    logs = {}
    task = ruler4k.Ruler(7, 2)
    assert task.n_items(None) == 2 * len(ruler.TASKS) and task.n_items(1) == len(ruler.TASKS)
    for kv in ("full", "h2o"):
        logs[kv] = RowLog(place / f"{kv}.jsonl", {})
        with fake_server(place, monkeypatch, kv, 4096) as server:
            task.run(server, logs[kv], None, Progress("ruler4k", 2, quiet=True))
    rows = task_rows(
        "vt", {kv: {k: r for k, r in log.rows.items() if r["kind"] == "vt"} for kv, log in logs.items()}, {}
    )
    assert [row["score"] for row in rows] == [pytest.approx(2 / 3), 0.0] and rows[1]["versus_full"]["lost"] == 2
    assert re.search(r"vt +full +66.7 % +1.333/2", table(rows))


def test_the_first_rows_are_equal_for_a_larger_number():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm_eval==0.4.13")
    pytest.importorskip("wonderwords", reason="wonderwords is not installed: pip install wonderwords")

    def words(text):
        return SimpleNamespace(input_ids=re.findall(r"\w+|[^\w\s]", text))

    for task in ruler.TASKS:
        few, many = (ruler.rows_of(task, words, 1024, n, 5) for n in (2, 4))
        assert many[:2] == few, task
