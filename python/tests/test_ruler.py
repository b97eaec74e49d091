"""Rows of RULER, and what the programs share."""

import json

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from tiny import save_tiny_model

from mikv import ruler
from mikv._cli import Progress, UsageError, model_name, model_place, run, seconds


def test_split():
    row = {"input": "A magic. What is the special magic number for x? text\nWhat is the special magic number for x? ",
           "gen_prefix": "The special magic number for x is", "outputs": [12]}  # fmt: skip
    made = ruler.split("niah_single_1", row)
    assert made["context"].endswith("text\n") and made["question"] == "What is the special magic number for x? "
    assert made["answer"] == ["12"] and made["max_new_tokens"] == 128
    with pytest.raises(UsageError, match="no question"):
        ruler.split("vt", row)


@pytest.mark.long
def test_rows(tmp_path):
    """Each task gives rows that fit, and the same rows again."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm_eval==0.4.13")
    pytest.importorskip("wonderwords", reason="wonderwords is not installed: pip install wonderwords")
    folder = save_tiny_model(tmp_path / "tiny")
    made = []
    for part in ("a", "b"):
        options = ["--model", str(folder), "--length", "1024", "--rows", "2", "--output", str(tmp_path / part)]
        assert run("mikv.ruler", ruler.main, options) == 0
        made.append((tmp_path / part / "1024" / "test.jsonl").read_text())
    assert made[0] == made[1]
    rows = [json.loads(line) for line in made[0].splitlines()]
    assert [row["task"] for row in rows] == [task for task in ruler.TASKS for _ in range(2)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in rows:
        assert set(row) == {"context", "question", "answer_prefix", "answer", "task", "max_new_tokens"}
        text = row["context"] + row["question"] + row["answer_prefix"]
        assert 400 < len(tokenizer(text).input_ids) + row["max_new_tokens"] <= 1024
        assert row["answer"] and all(answer in row["context"] for answer in row["answer"])


@pytest.mark.parametrize("options, message", [
    (["--tasks", "qa_1"], "niah_single_1"), (["--rows", "0"], "--rows"), (["--gguf", "x.gguf"], "x.gguf")])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    assert run("mikv.ruler", ruler.main, ["--model", str(tmp_path), "--output", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_progress_tells_the_time_left():
    now = [0.0]
    progress = Progress("mikv", 10, quiet=True, clock=lambda: now[0])
    progress.skip(4)
    for _ in range(2):
        now[0] += 30
        progress.step()
    assert progress.text() == "mikv 6/10, 30 s each, 2 min left"
    assert [seconds(s) for s in (0.41, 41, 480, 7600)] == ["0.4 s", "41 s", "8 min", "2.1 h"]


def test_where_a_model_is(tmp_path):
    (tmp_path / "a.gguf").touch()
    assert model_place(str(tmp_path / "a.gguf"), None) == (str(tmp_path), {"gguf_file": "a.gguf"})
    assert model_place("org/name", None) == ("org/name", {})
    assert model_name(str(tmp_path), "a.gguf") == "a" and model_name("org/name", None) == "org/name"
    with pytest.raises(UsageError, match="a.gguf"):
        model_place(str(tmp_path), "b.gguf")
