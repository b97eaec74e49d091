"""python -m mikv.kvpress on a tiny model: pipeline and scorers, folder layout, going on after an interrupt."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("kvpress", reason="kvpress is not installed: scripts/setup_kvpress.sh")

from tiny import save_tiny_model, word  # noqa: E402

from mikv._cli import UsageError, run  # noqa: E402
from mikv.kvpress import __main__ as program  # noqa: E402
from mikv.kvpress import evaluation  # noqa: E402

try:
    evaluate = evaluation.load(None)
except UsageError as error:
    pytest.skip(f"no evaluation/ of kvpress: {error}", allow_module_level=True)

N_CONTEXT = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def data(tmp_path) -> Path:
    """Three contexts in kvpress's columns; the first has two questions."""
    rng = random.Random(5)
    rows = []
    for i, (task, n_questions) in enumerate((("niah_single_1", 2), ("vt", 1), ("vt", 1))):
        context = " ".join(word(rng.randrange(400)) for _ in range(N_CONTEXT + i))
        for question in range(n_questions):
            rows.append({"context": context, "question": f"w{question} w7 ", "answer_prefix": "w9", "answer": ["w1", "w2"],
                         "task": task, "max_new_tokens": 4})  # fmt: skip
    (tmp_path / "data" / "512").mkdir(parents=True)
    (tmp_path / "data" / "512" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def arguments(folder: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--model",
        str(folder),
        "--dataset_path",
        str(data),
        "--data_dir",
        "512",
        "--output_dir",
        str(output),
        "--quiet",
        *more,
    ]


def test_arms_at_equal_bytes(folder, data, tmp_path, capsys):
    output = tmp_path / "out"
    presses = "no_press,mikv,snapkv,expected_attention"
    assert program.main(arguments(folder, data, output, "--press_name", presses, "--json", "--spec", "mikv")) == 0
    summary = {arm["press_name"]: arm for arm in json.loads(capsys.readouterr().out)}
    assert list(summary) == presses.split(",")
    assert json.loads((output / "summary.json").read_text()) == list(summary.values())
    tiers = summary["mikv"]
    assert tiers["bytes_per_context"] == pytest.approx(
        (1 - tiers["compression_ratio"]) * tiers["f16_bytes_per_context"], rel=0.01
    )
    assert 0.3 < tiers["compression_ratio"] < 0.9
    assert summary["no_press"]["compression_ratio"] == 0
    assert summary["no_press"]["bytes_per_context"] == summary["no_press"]["f16_bytes_per_context"]
    for press in ("snapkv", "expected_attention"):
        arm = summary[press]
        held = arm["bytes_per_context"] - arm["masked_bytes_per_context"]
        assert held == pytest.approx(tiers["bytes_per_context"], rel=0.01)
    # AdaKV, of which kvpress's expected_attention is one, masks and keeps.
    assert (
        summary["expected_attention"]["masked_bytes_per_context"] > 0 == summary["snapkv"]["masked_bytes_per_context"]
    )

    results = Path(tiers["folder"])
    assert results.name == f"ruler__512__{folder.name}__mikv__{tiers['compression_ratio']:.2f}"
    rows = list(csv.DictReader((results / "predictions.csv").open()))
    assert len(rows) == 4 and all(row["predicted_answer"] for row in rows)
    assert all(0.3 < float(row["compression_ratio"]) < 0.9 for row in rows)
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics) == {"niah_single_1", "vt"} and "string_match" in metrics["vt"]
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((results / "config.yaml").read_text())
    assert config["press_name"] == "mikv" and config["press_init_command"] == "mikv.hf.Cache('mikv')"
    assert config["compression_ratio"] == tiers["compression_ratio"]

    # Again: nothing is run, nothing is written twice.
    before = sorted(output.rglob("*"))
    assert program.main(arguments(folder, data, output, "--press_name", presses)) == 0
    assert sorted(output.rglob("*")) == before
    assert "expected_attention" in capsys.readouterr().out


def test_full_answers_as_no_press(folder, data, tmp_path, capsys):
    done = program.main(
        arguments(folder, data, tmp_path / "out", "--press_name", "no_press,mikv", "--spec", "full", "--json")
    )
    assert done == 0
    answers = []
    for arm in json.loads(capsys.readouterr().out):
        rows = list(csv.DictReader((Path(arm["folder"]) / "predictions.csv").open()))
        answers.append([row["predicted_answer"] for row in rows])
    assert answers[0] == answers[1]


def test_the_context_is_compressed_before_the_question(folder, data, tmp_path, monkeypatch):
    """A cache that forgets nearly all answers otherwise, also the first token."""
    from mikv.kvpress.caches import TieredPress

    staged = []
    new_cache = TieredPress.new_cache

    def watched(self, model):
        cache = new_cache(self, model)
        compress = cache.compress
        monkeypatch.setattr(
            cache,
            "compress",
            lambda: (compress(), staged.append((cache.get_seq_length(), cache.memory_usage().staged))),
        )
        return cache

    monkeypatch.setattr(TieredPress, "new_cache", watched)
    assert program.main(arguments(folder, data, tmp_path / "out", "--press_name", "mikv")) == 0
    assert len(staged) == 3 and all(n >= N_CONTEXT and waiting == 0 for n, waiting in staged)


def test_goes_on_after_an_interrupt(folder, data, tmp_path, monkeypatch, capsys):
    from mikv.kvpress.arms import Runner

    output = tmp_path / "out"
    read_context, calls = Runner._read_context, []

    def interrupted(self, *a):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_context(self, *a)

    monkeypatch.setattr(Runner, "_read_context", interrupted)
    assert program.main(arguments(folder, data, output, "--press_name", "mikv")) == 130
    assert "goes on" in capsys.readouterr().err
    unfinished = next((output / "unfinished").glob("mikv-*.jsonl"))
    with unfinished.open("a") as file:
        file.write('{"context": "cut')  # as if the disk was full
    assert program.main(arguments(folder, data, output, "--press_name", "mikv")) == 0
    assert len(calls) == 4  # two, the one that was interrupted, and that again
    assert not unfinished.exists()
    # Fewer rows of each task: what is done is taken from there.
    assert program.main(arguments(folder, data, output, "--press_name", "mikv", "--limit", "1")) == 0
    assert len(calls) == 5  # the first question alone, as the pipeline asks all of a context at once


@pytest.mark.parametrize("more, message", [
    (["--press_name", "snapkv"], "put mikv before it"),
    (["--press_name", "nothing", "--compression_ratio", "0.5"], "not known"),
    (["--press_name", "decoding_knorm", "--compression_ratio", "0.5"], "evaluate.py"),
    (["--press_name", "mikv", "--spec", "mikw"], "mikw"),
    (["--press_name", "no_press", "--spec", "mikv"], "--press_name"),
    (["--press_name", "mikv", "--compression_ratio", "2"], "0 to below 1"),
    (["--dataset", "nothing"], "ruler"),
    (["--dataset_path", "/nonexistent"], "no directory"),
    (["--gguf", "nothing.gguf"], "nothing.gguf"),
    (["--kvpress-evaluation", "/nonexistent"], "setup_kvpress.sh"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, data, tmp_path, capsys, more, message):
    assert run("mikv.kvpress", program.main, arguments(folder, data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_loading_prints_nothing():
    """Nor do the modules that it imports: stdout is for --json."""
    code = "from mikv.kvpress import evaluation; evaluation.load(None)"
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=where, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0 and "example" in capsys.readouterr().out
