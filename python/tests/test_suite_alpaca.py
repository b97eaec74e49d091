"""The task `alpaca` of mikv.suite: outputs in AlpacaEval's form, and agreement with `full`."""

from __future__ import annotations

import json

import pytest
from test_suite import here, n_requests, place, rows_of, suite  # noqa: F401  place is a fixture

from mikv.suite.alpaca import common_words


@pytest.fixture
def data(place):  # noqa: F811
    (place / "data" / "alpaca_eval").mkdir(parents=True)
    rows = [{"dataset": "koala", "instruction": f"Say one and two and {i}"} for i in range(4)]
    (place / "data" / "alpaca_eval" / "instructions.json").write_text(json.dumps(rows))
    return place


def test_outputs_and_agreement(data):
    options = ("--tasks", "alpaca", "--kv", "full,mikv,h2o")
    assert suite(data, *options, "--limit", "3").returncode == 0
    rows = rows_of(data)
    assert rows["alpaca", "mikv"]["score"] == rows["alpaca", "full"]["score"] == 1.0
    assert rows["alpaca", "h2o"]["score"] == 0.0 and rows["alpaca", "h2o"]["common_words"] == pytest.approx(5 / 6)
    assert rows["alpaca", "h2o"]["mean_words"] == 5 and rows["alpaca", "full"]["mean_words"] == 6
    outputs = json.loads((data / "results" / "alpaca.h2o.outputs.json").read_text())
    assert outputs[2] == {
        "instruction": "Say one and two and 2", "output": "Say one and two and", "generator": "fake 1M, h2o",
        "dataset": "koala",
    }  # fmt: skip
    before = n_requests(data)
    assert suite(data, *options, "--limit", "4").returncode == 0 and n_requests(data) == before + 3
    assert len(json.loads((data / "results" / "alpaca.full.outputs.json").read_text())) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is no JSON"), ("{}", "is no list"), ("[]", "is no list"), ('[{"instruction": " "}]', "item 0 has no text")],
)
def test_broken_instructions(data, capsys, text, said):
    (data / "data" / "alpaca_eval" / "instructions.json").write_text(text)
    assert here(data, "--tasks", "alpaca", "--kv", "full") == 2
    complaint = capsys.readouterr().err
    assert said in complaint and len(complaint.strip().splitlines()) == 1


def test_it_compares_with_full(data, capsys):
    assert here(data, "--tasks", "alpaca", "--kv", "mikv") == 2
    assert "add it to --kv" in capsys.readouterr().err
    assert here(data, "--tasks", "alpaca", "--kv", "full", "--alpaca-file", "/no/such.json") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_common_words():
    assert common_words("a b c", "a b d") == pytest.approx(2 / 3) and common_words("a", "a b") == 0.5
    assert common_words("", "") == 0.0 and common_words("x", "y") == 0.0 and common_words("a  b", "a b") == 1.0
