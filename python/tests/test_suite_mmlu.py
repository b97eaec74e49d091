"""The task `mmlu` of mikv.suite, and how choices are scored through a compressed cache."""

from __future__ import annotations

import json
import os
import threading

import pytest
from test_suite import (  # noqa: F401  place is a fixture
    assert_named_by_line,
    fake_server,
    here,
    n_requests,
    place,
    rows_of,
    suite,
)

from mikv._cli import Progress, UsageError
from mikv.suite.choices import choice_tokens, log_probabilities
from mikv.suite.mmlu import Mmlu
from mikv.suite.rows import RowLog
from mikv.suite.server import Server
from mikv.suite.statistics import difference

SUBJECTS = ("astronomy", "sociology")


def question(i: int) -> dict:
    choices = [str(2 * i + 10 + d) for d in (0, 1, 2, 3)]
    choices = choices[-(i % 4) :] + choices[: -(i % 4)]
    return {"question": f"What is {i} plus {i + 10}?", "choices": choices, "answer": choices.index(str(2 * i + 10))}


@pytest.fixture
def mmlu(place):  # noqa: F811
    folder = place / "data" / "cais" / "mmlu"
    configs = ""
    for subject in SUBJECTS:
        (folder / subject).mkdir(parents=True)
        for part, rows in (("dev", range(50, 55)), ("test", range(4))):
            text = "".join(json.dumps(question(i)) + "\n" for i in rows)
            (folder / subject / f"{part}.jsonl").write_text(text)
        configs += f"- config_name: {subject}\n  data_files:\n"
        configs += "".join(f"  - split: {part}\n    path: {subject}/{part}.jsonl\n" for part in ("dev", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return place


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "empty"),
        (json.dumps(question(1)) + "\n" + json.dumps({"question": "q", "choices": ["a"], "answer": 0}), 2, "list of 4"),
        (json.dumps(question(1) | {"answer": 4}), 1, "none of 0 to 3"),
        (json.dumps(question(1) | {"answer": "B"}), 1, "none of 0 to 3"),
        ('{"choices": []}', 1, "'question' is missing"),
    ],
)
def test_a_broken_row_is_named_by_line(mmlu, text, line, said, capsys):
    file = mmlu / "data" / "cais" / "mmlu" / "sociology" / "test.jsonl"
    assert_named_by_line(mmlu, "mmlu", file, text, line, said, capsys)


def test_subjects_that_are_not_there(mmlu, capsys):
    assert here(mmlu, "--tasks", "mmlu", "--kv", "full", "--mmlu-subjects", "sociology,law") == 2
    assert "has no law/test.jsonl; there are: astronomy, sociology" in capsys.readouterr().err


def test_choices_go_through_the_cache(place, monkeypatch):  # noqa: F811
    asked = "What is 3 plus 4?\nA. 6\nB. 7\nC. 8\nD. 9\nAnswer:"
    with fake_server(place, monkeypatch) as server:
        tokens, wanted = choice_tokens(server, asked, [" A", " B", " C"], 60)
        found, likeliest = log_probabilities(server, 1, tokens, wanted, 60)
        assert found == [-3.0, -0.5, -5.0] and likeliest == wanted[1]
        # D is not among the first: all are asked for.
        _, wanted = choice_tokens(server, asked, [" D"], 60)
        assert log_probabilities(server, 0, tokens, wanted, 60)[0] == [-6.0]
        with pytest.raises(UsageError, match="no single token"):
            choice_tokens(server, asked, [" A and B"], 60)
        with pytest.raises(UsageError, match="lacks it"):
            log_probabilities(server, 0, tokens, [-1], 60)


@pytest.mark.long
def test_lm_evals_tasks(mmlu):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    options = ("--tasks", "mmlu", "--kv", "full,h2o", "--slots", "2")
    done = suite(mmlu, *options, "--limit", "3")
    assert done.returncode == 0, done.stderr
    rows = rows_of(mmlu)
    tasks = ("mmlu", *(f"mmlu: {subject}" for subject in SUBJECTS))
    assert set(rows) == {(task, kv) for task in tasks for kv in ("full", "h2o")}
    # The server of the test is sure of right choices under `full`, and as sure of wrong ones under h2o.
    assert all(rows[task, "full"]["log_likelihood"] > rows[task, "h2o"]["log_likelihood"] for task in tasks)
    assert rows["mmlu", "h2o"]["versus_full"]["log_likelihood"]["mean"] < -1
    assert all(rows[f"mmlu: {subject}", "full"]["correct"] == 3 for subject in SUBJECTS)
    assert rows["mmlu: sociology", "h2o"]["correct"] == 0 and rows["mmlu: sociology", "h2o"]["versus_full"]["lost"] == 3
    before = n_requests(mmlu)
    assert suite(mmlu, *options, "--limit", "3").returncode == 0 and n_requests(mmlu) == before
    assert suite(mmlu, *options, "--limit", "4").returncode == 0
    assert rows_of(mmlu)["mmlu: astronomy", "full"]["n"] == 4
    (mmlu / "data" / "cais" / "mmlu" / "astronomy").rename(mmlu / "data" / "cais" / "mmlu" / "alchemy")
    done = suite(mmlu, *options)
    assert done.returncode == 2 and done.stderr.endswith("lm-eval has no task mmlu_alchemy\n")
    kept = RowLog(mmlu / "results" / "mmlu.full.jsonl", {}).rows.values()
    assert all(set(row["log_probabilities"]) == {" A", " B", " C", " D"} for row in kept)


@pytest.mark.skipif(
    not (os.environ.get("MIKV_BINARY") and os.environ.get("MIKV_TEST_MODEL")),
    reason="set MIKV_BINARY to the mikv command and MIKV_TEST_MODEL to a GGUF file",
)
def test_a_real_server_reads_its_cache():
    """Logits of a cache that keeps nothing differ from the full cache's, and those of `full` are stock's."""
    facts = " ".join(f"Box {i} holds {i * 37 % 101} stones." for i in range(60))
    asked = f"{facts}\nWhat does box 20 hold?\nA. 31 stones\nB. 33 stones\nC. 34 stones\nD. 35 stones\nAnswer:"
    of = {}
    for kv in ("llama:f16", "full", "mikv", "h2o:keep=0.02"):
        with Server(os.environ["MIKV_BINARY"], os.environ["MIKV_TEST_MODEL"], kv, 2, 1, 2048) as server:
            tokens, wanted = choice_tokens(server, asked, [" A", " B", " C", " D"], 600)
            of[kv] = log_probabilities(server, 0, tokens, wanted, 600)[0]
            assert len(tokens) > 600
            if kv == "mikv":
                assert server.figures()["bits_per_element"] < 6
    assert of["full"] == pytest.approx(of["llama:f16"], abs=0.05)
    assert of["mikv"] == pytest.approx(of["full"], abs=0.5)
    assert max(abs(a - b) for a, b in zip(of["h2o:keep=0.02"], of["full"], strict=True)) > 1.0


def test_the_right_choice_among_the_four():
    rows = {
        str(i): {"kind": "law", "doc": i, "target": target, "log_probabilities": {" D": -4.0, " A": -1.0, " C": -3.0, " B": -2.0}}
        for i, target in enumerate((0, 3))
    }  # fmt: skip
    task = Mmlu.__new__(Mmlu)
    task.questions = {"law": []}
    judged = task.judged({"full": task.scored(rows, None)})
    likely = [row["log_likelihood"] for row in judged["full"].values()]
    assert likely == pytest.approx([-0.4402, -3.4402], abs=1e-4)


def test_a_mean_difference_has_a_standard_error():
    apart = difference({"a": 1.0, "b": 2.0, "c": 6.0, "d": 9.0}, {"a": 0.0, "b": 0.0, "c": 3.0})
    assert apart == pytest.approx({"mean": 2.0, "standard_error": 3**-0.5})
    assert difference({"a": 1.0}, {"a": 2.0}) is None


def test_progress_counts_contexts(place, monkeypatch):  # noqa: F811
    from mikv.suite.choices import choices_model

    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    progress = Progress("mmlu", 1, quiet=True)
    log = RowLog(place / "rows.jsonl", {})
    asked = "What is 3 plus 4?\nA. 6\nB. 7\nC. 8\nD. 9\nAnswer:"
    with fake_server(place, monkeypatch) as server:
        model = choices_model(server, log, progress, threading.Event(), 60)

        class Request:
            def __init__(self, choice: str) -> None:
                self.args = (asked, choice)

        assert model.loglikelihood([Request(" B"), Request(" A")]) == [(-0.5, True), (-3.0, False)]
    assert progress.done == 1
