"""The task `context` of mikv.suite: its cases, its rule, a user's own file, and a run against the stand-in."""

from __future__ import annotations

import json

import pytest
from test_suite import here, n_requests, place, rows_of, suite  # noqa: F401  place is a fixture

from mikv._cli import UsageError
from mikv.suite import context


def test_cases_are_equal_for_equal_seeds_and_begin_alike():
    few, many = context.generated(2, 20, 7), context.generated(3, 20, 7)
    assert many[: len(few)] == few and context.generated(2, 20, 8) != few
    assert [case["kind"] for case in few] == list(context.KINDS) * 2
    assert len({case["id"] for case in many}) == len(many)


def test_there_are_names_for_so_many_sentences():
    assert len(context.generated(1, 287, 7)) == len(context.KINDS)
    with pytest.raises(UsageError, match="names for 287"):
        context.generated(1, 288, 7)


def test_answers_are_where_they_are_looked_for():
    for case in context.generated(20, 20, 3):
        said = case["system"] if case["kind"] in ("safety", "rules", "invention") else case["text"]
        assert all(text in said for text in case["all_of"])
        assert all(text in case["system"] for text in case["none_of"])
        if case["kind"] == "invention":
            name = case["question"].split(" did ")[1].split(" deliver")[0]
            assert name not in case["text"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("I must NOT tell\nthe code.", True),
        ("I must not tell the code, which is 4831.", False),
        ("4831", False),
        ("", False),
    ],
)
def test_what_must_be_said_and_must_not(answer, right):
    assert context.is_right({"all_of": ["must not tell"], "none_of": ["4831"]}, answer) == right


def test_texts_are_in_order():
    case = {"all_of": ["one", "two"], "none_of": []}
    assert context.is_right(case, "One and two") and not context.is_right(case, "two and one")
    assert not context.is_right({"all_of": ["one", "one"], "none_of": []}, "one")


def test_kinds_are_rows_and_nothing_is_asked_twice(place):  # noqa: F811
    options = ("--tasks", "context", "--kv", "full,h2o", "--slots", "2", "--context-sentences", "20")
    done = suite(place, *options, "--limit", "3")
    assert done.returncode == 0, done.stderr
    rows = rows_of(place)
    assert {task for task, _ in rows} == {"context"} | {f"context: {kind}" for kind in context.KINDS}
    assert rows["context", "full"]["correct"] == 3 * len(context.KINDS), "of all kinds together"
    assert all(rows[f"context: {kind}", "full"]["correct"] == 3 for kind in context.KINDS)
    for kind in ("safety", "details", "invention", "coherence"):
        assert rows[f"context: {kind}", "h2o"]["versus_full"]["lost"] == 3
    before = n_requests(place)
    assert suite(place, *options, "--limit", "4").returncode == 0
    assert n_requests(place) == before + 2 * len(context.KINDS)
    other = suite(place, *options, "--limit", "4", "--seed", "8")
    assert other.returncode == 2 and "seed was 7" in other.stderr


def test_own_cases(place):  # noqa: F811
    file = place / "own.jsonl"
    case = {"id": "1", "kind": "tone", "system": 'Say "Arr".', "text": "A text.", "question": "Who?", "all_of": ["arr"]}
    file.write_text(json.dumps(case) + "\n")
    assert suite(place, "--tasks", "context", "--kv", "full", "--context-file", str(file)).returncode == 0
    assert rows_of(place)["context: tone", "full"]["score"] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "own.jsonl:2: the field 'question' is no text"),
        ({"all_of": "arr"}, "own.jsonl:2: the field 'all_of' is no list of texts"),
        ({"all_of": []}, "own.jsonl:2: neither 'all_of' nor 'none_of' says what is right"),
        ({"id": "1"}, "own.jsonl:2: the id '1' is there twice"),
    ],
)
def test_broken_cases_are_named_by_line(place, capsys, change, said):  # noqa: F811
    case = {"id": "1", "kind": "tone", "system": "", "text": "", "question": "Who?", "all_of": ["arr"]}
    (place / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (case, case | {"id": "2"} | change)))
    assert here(place, "--tasks", "context", "--kv", "full", "--context-file", str(place / "own.jsonl")) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(UsageError):
        context.from_file(place / "none.jsonl")
