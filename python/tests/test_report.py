"""python -m mikv.report: pages of the files that the measuring commands write."""

from __future__ import annotations

import json

import pytest
from pages import Page, shown

from mikv._cli import UsageError, run
from mikv.report import __main__ as command
from mikv.report import page
from mikv.report.charts import charts_of
from mikv.report.runs import read

META = {
    "command": "eval lines",
    "command_line": "mikv eval lines -m x --kv '<b>'",
    "model": "/m/x.gguf",
    "threads": [1, 2],
}
LINES = [
    {"kv": "full", "score": 1.0, "correct": 20, "n": 20, "bits_per_element": 16.3, "kv_bytes": 9e6, "decode_tokens_per_s": None},
    {"kv": "mikv", "score": 0.95, "correct": 19, "n": 20, "bits_per_element": 3.2, "kv_bytes": 2e6, "decode_tokens_per_s": None},
]  # fmt: skip
KLD = [
    {"kv": "full", "mean": 1e-9, "p99": 1e-8, "bits_per_element": 16.3, "same_top": 1.0, "n": 16},
    {"kv": "mikv", "mean": 0.0012, "p99": 0.01, "bits_per_element": 3.2, "same_top": 0.98, "n": 16},
    {"kv": "llama:q4_0", "mean": 0.4, "p99": 1.5, "bits_per_element": 4.5, "same_top": 0.7, "n": 16},
]
COMPARE = [
    {"cache": "mikv", "kind": "mikv", "bits_per_element": 3.5, "bytes": 100, "bytes_by_part": {"hi": 40, "lo": 60},
     "kld_mean": 0.001, "lines_right": 9, "lines_asked": 10, "lines_bits_per_element": 3.9, "answers": ["7"]},
    {"cache": "sim:kivi-2", "kind": "simulated", "bits_per_element": 2.8, "bytes": 90, "bytes_by_part": {"codes": 90},
     "kld_mean": 0.4, "lines_right": 1, "lines_asked": 10, "lines_bits_per_element": 2.9, "answers": ["8"]},
]  # fmt: skip
SUITE = [
    {"task": task, "kv": kv, "score": score, "n": 10, "bits_per_element": bits, "interval": [0.1, 0.9], **more}
    for kv, score, bits, more in (("full", 0.9, 16.3, {"mean_kld": 0.002}), ("mikv", 0.8, 3.2, {"mean_kld": 0.03}))
    for task, more in (
        ("gsm8k", {}), ("mmlu: law", {}), ("mmlu: art", {}), ("mmlu", {}), ("context: rules", {}), ("kld", more))
]  # fmt: skip
BENCH = [
    {"kv": kv, "depth": depth, "tokens_per_s": 10.0, "bits_per_element": 3.0} for kv in ("a", "b") for depth in (0, 8)
]
ATTENTION = [{"kv": kv, "n_tokens": 1024, "ns_per_token_head": 7.0, "head_dim": 64} for kv in ("mikv", "llama:f16")]


def written(folder, rows, name="run.json", meta=META, **more):
    file = folder / name
    file.write_text(json.dumps({"meta": meta, "rows": rows, **more}))
    return file


@pytest.mark.parametrize("rows, titles", [
    (LINES, ["Score against bits per element"]), (KLD, ["KL divergence against bits per element"]),
    (COMPARE, ["Score against bits per element", "KL divergence against bits per element", "Memory by part"]),
    (SUITE, [*(f"Score against bits per element: {task}" for task in ("gsm8k", "mmlu", "context: rules", "kld")),
             "KL divergence against bits per element"]),
    (BENCH, ["Speed against tokens in the cache"]), (ATTENTION, ["Time of attention"]), (KLD[:1], [])])  # fmt: skip
def test_charts_of_each_command(tmp_path, rows, titles):
    charts = charts_of(read(written(tmp_path, rows)))
    assert [chart.title for chart in charts] == titles


def test_charts_hold_the_rows(tmp_path):
    score, divergence, memory = charts_of(read(written(tmp_path, COMPARE)))
    at = [(v["cache"], v["x"], v["y"]) for v in score.spec["data"]["values"]]
    assert at == [("mikv", 3.9, 90.0), ("sim:kivi-2", 2.9, 10.0)], "a score has the bits of its own prompts"
    assert [(v["x"], v["y"]) for v in divergence.spec["data"]["values"]] == [(3.5, 0.001), (2.8, 0.4)]
    assert sum(v["mib"] for v in memory.spec["data"]["values"]) * 2**20 == pytest.approx(190)
    whole = charts_of(read(written(tmp_path, [*COMPARE, {"cache": "dynamic", "bytes": 500}])))[2]
    assert [v["part"] for v in whole.spec["data"]["values"]] == ["hi", "lo", "codes", "all"]
    (chart,) = charts_of(read(written(tmp_path, KLD)))
    assert [v["cache"] for v in chart.spec["data"]["values"]] == ["mikv", "llama:q4_0"]
    assert "full" in chart.note, "what has no place on a logarithmic axis is named"
    low, high = chart.spec["encoding"]["y"]["scale"]["domain"]
    assert low <= 0.0012 and high >= 0.4


def test_a_suite_has_each_cache_once_in_a_chart(tmp_path):
    meta = {"command": "eval suite", "command_line": "python -m mikv.suite --kv full,mikv", "model": "fake 1M"}
    run = read(written(tmp_path, SUITE, "summary.json", meta))
    for chart in charts_of(run):
        assert [v["cache"] for v in chart.spec["data"]["values"]] == ["full", "mikv"]
    assert [v["y"] for v in charts_of(run)[-1].spec["data"]["values"]] == [0.002, 0.03]
    assert run.title == "eval suite: fake 1M" and run.command_line == "python -m mikv.suite --kv full,mikv"


def test_names_do_not_cover_each_other(tmp_path):
    """On 310 pixels, with eight caches that all find everything."""
    rows = [LINES[0] | {"kv": f"cache-{i}", "bits_per_element": 3 + 0.02 * i} for i in range(8)]
    (chart,) = charts_of(read(written(tmp_path, [*rows, LINES[0]])))
    offsets = [v["dy"] for v in chart.spec["data"]["values"]][:8]
    assert all(abs(a - b) >= 13 for i, a in enumerate(offsets) for b in offsets[:i])


def test_the_page(tmp_path):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    files = [
        written(tmp_path, LINES, "a.json"),
        written(tmp_path, COMPARE, "b.json", not_run=[{"reason": "x<y: too <slow>"}]),
    ]
    out = tmp_path / "page.html"
    assert run("mikv.report", command.main, [*map(str, files), "-o", str(out)]) == 0
    whole = Page(out.read_text(encoding="ascii"))
    whole.check()
    words = " ".join(whole.words)
    assert "mikv eval lines -m x --kv '<b>'" in words and f"python -m mikv.report {files[0]}" in words
    assert "95.0 %" in words and "16.30" in words and "x<y: too <slow>" in words
    assert len(whole.data) == 4 and whole.tags.count("table") == 2 and "1, 2 threads" in words
    assert "b" not in whole.tags


def test_hostile_rows_stay_text(tmp_path):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    evil = "</script><img src=x onerror=alert(1)>"
    rows = [KLD[1] | {"kv": evil, evil: evil}, KLD[2]]
    whole = Page(page.build([read(written(tmp_path, rows, meta={"command": evil, "model": evil, "cpu": evil}))], evil))
    whole.check()
    assert whole.data[0]["data"]["values"][0]["cache"] == evil


@pytest.mark.parametrize("text", (
    "", "{", "[]", "{}", '{"rows": 3}', '{"meta": {}, "rows": []}', '{"meta": {}, "rows": [1]}', '{"rows": [{"kv": "x"}]}',
    '{"meta": {}, "rows": [{"kv": 1}]}', "[" * 100_000, '{"a": 1}\n{"b": 2}', "\xff"))  # fmt: skip
def test_broken_files_are_one_line(tmp_path, capsys, text):
    file = tmp_path / "broken.json"
    file.write_text(text, encoding="latin-1")
    assert run("mikv.report", command.main, [str(file), "-o", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "broken.json" in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for name in ("missing.json", "."):
        with pytest.raises(UsageError, match="cannot read"):
            read(tmp_path / name)


def test_strange_values_are_left_out(tmp_path):
    file = tmp_path / "strange.json"
    file.write_text('{"meta": {"threads": {"a": NaN}}, "rows": [{"kv": "a", "mean": NaN, "bits_per_element": "many", "score": true},'
                    '{"kv": "b", "mean": 1e999, "bits_per_element": 3, "bytes_by_part": [1]}]}')  # fmt: skip
    strange = read(file)
    assert charts_of(strange) == []
    Page(page.build([strange], "c")).check()


def test_a_browser_draws_the_charts_and_sorts(tmp_path):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    runs = [
        read(written(tmp_path, rows, f"{i}.json")) for i, rows in enumerate((LINES, KLD, COMPARE, BENCH, ATTENTION))
    ]
    out = tmp_path / "page.html"
    out.write_text(page.build(runs, "c"), encoding="ascii")
    dom = shown(tmp_path, out)
    assert dom.count("<svg") == 7 and "cannot be drawn" not in dom
    assert 'aria-label="KL divergence against bits per element"' in dom
