"""python -m mikv.compare on a small random model: what is measured is what a user would get."""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import mikv.hf  # noqa: E402
from mikv._cli import UsageError, run, split_specs  # noqa: E402
from mikv.compare import __main__ as command  # noqa: E402
from mikv.compare import lines, report  # noqa: E402
from mikv.compare.arms import CannotRun, parse_choices, storage_of  # noqa: E402
from mikv.compare.measure import Run, Settings, equal_bytes  # noqa: E402
from mikv.compare.panel import Bench  # noqa: E402


class Letters:
    """A tokenizer of one token per letter."""

    bos_token_id = 0
    add_bos_token = True
    chat_template = None

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) % 128 for c in text]}

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def small_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, initializer_range=0.2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "letters.txt"
    generator = torch.Generator().manual_seed(1)
    path.write_text("".join(chr(97 + int(x)) for x in torch.randint(0, 26, (1200,), generator=generator)))
    return str(path)


def measured(text, kv, peers="", **changes):
    settings = Settings(**{"texts": [text], "context": 400, "tokens": 6, "chunks": 1, "timed": 1, **changes})
    run = Run(Bench(small_model()), Letters(), parse_choices(kv, peers), settings, lambda *_: None)
    with torch.no_grad():
        for step in (run.divergence, run.line_retrieval):
            if step == run.divergence and not settings.texts:
                continue
            for _ in step():
                pass
    return {row["cache"]: row for row in run.rows()}, run


def test_full_is_the_reference_and_h2o_is_far(text):
    rows, _ = measured(text, "full,mikv,h2o:keep=0.02", "dynamic")
    assert rows["dynamic"]["kld_mean"] < 1e-9
    assert rows["full"]["kld_mean"] < 1e-4  # f16
    assert rows["mikv"]["kld_mean"] < rows["h2o:keep=0.02"]["kld_mean"]
    assert rows["h2o:keep=0.02"]["kld_mean"] > 100 * rows["full"]["kld_mean"]
    assert rows["full"]["n"] == 6


def test_bytes_are_measured(text):
    rows, run = measured(text, "full", "dynamic,sim:turboquant-2")
    elements = 406 * 2 * 2 * 2 * 64
    assert run.elements_per_token == 512
    assert rows["dynamic"]["bytes"] == 4 * elements  # float32
    assert rows["dynamic"]["bits_per_element"] == 32
    assert rows["sim:turboquant-2"]["bits_per_element"] == pytest.approx(2.25, abs=0.05)
    assert 16 <= rows["full"]["bits_per_element"] < 18


def test_simulations_are_marked_and_have_no_speed(text):
    rows, _ = measured(text, "full", "sim:kivi-2,sim:kvarn-2,sim:oscar-2,sim:kitty-2,sim:block-gtq-2")
    for row in rows.values():
        assert row["simulated"] == row["cache"].startswith("sim:")
        assert (row["cache_s_per_token"] is None) == row["simulated"]
        assert row["kld_mean"] >= 0
    shown = report.table(list(rows.values()))
    assert shown.count("simulated") == 5


@pytest.mark.parametrize("spec", ["full", "mikv", "mikv-paper"])
def test_panel_gives_what_the_model_gives(spec):
    """A cache that took a record is the one that read the prompt itself."""
    model = small_model()
    tokens = torch.randint(1, 128, (1, 405), generator=torch.Generator().manual_seed(3))
    bench = Bench(model)
    with torch.no_grad():
        record, _ = bench.read(tokens[0, :400].tolist())
        (choice,) = parse_choices(spec, "")
        arms = [choice.make(model, 1), parse_choices("full", "")[0].make(model, 1)]
        for arm in arms:
            record.give(arm)
        panel = bench.panel(arms, 400)
        ours = [bench.forward(panel, tokens[:, i : i + 1].expand(2, 1))[0] for i in range(400, 405)]
        model.set_attn_implementation("mikv")
        cache = mikv.hf.Cache(spec, config=model.config, n_threads=1)
        model(tokens[:, :400], **{bench.cache_argument: cache})
        theirs = [model(tokens[:, i : i + 1], **{bench.cache_argument: cache}).logits[0, -1] for i in range(400, 405)]
        theirs = [logits.log_softmax(-1) for logits in theirs]
    assert arms[0].size().total == cache.memory_usage().total
    # The first layer has the same queries and keys in both; after it f16 in the prompt's attention moves them a little.
    for head in (0, 1):
        of_ours, of_theirs = arms[0].cache.tokens(0, head), cache.tokens(0, head)
        assert (of_ours.position == of_theirs.position).all() and (of_ours.tier == of_theirs.tier).all()
        assert of_ours.score == pytest.approx(of_theirs.score, rel=1e-3)
    if spec == "full":
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max()) < 1e-2


def test_reference_gives_what_dynamic_cache_gives():
    model = small_model()
    tokens = torch.randint(1, 128, (1, 303), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = model(tokens).logits[0, -1].double().log_softmax(-1)
        bench = Bench(model)
        record, _ = bench.read(tokens[0, :300].tolist())
        arm = parse_choices("", "dynamic")[0].make(model, 1)
        record.give(arm)
        panel = bench.panel([arm], 300)
        for i in range(300, 303):
            log_p = bench.forward(panel, tokens[:, i : i + 1])
    assert float((log_p[0] - expected).abs().max()) < 1e-4


def test_lines_are_asked_and_checked(text):
    rows, _ = measured(text, "full", "sim:kivi-2", texts=[], prompts=2, lines=3)
    assert rows["full"]["lines_asked"] == 2 and len(rows["full"]["answers"]) == 2


def test_line_cases():
    case = lines.make_case(20, 7, 0)
    assert case == lines.make_case(20, 7, 0) != lines.make_case(20, 7, 1)
    assert case.prompt.count("\nline ") == 20 and f"<{case.expected}>" in case.prompt
    assert lines.is_right("12,345> is", "12345") and lines.is_right(" 0047>", "47")
    assert not lines.is_right("1234", "12345") and not lines.is_right("none", "1")
    assert lines.is_complete("12345>") and not lines.is_complete("123") and not lines.is_complete("a")


def test_a_peer_that_fails_is_named(text, monkeypatch):
    from mikv.rivals import kivi

    monkeypatch.setattr(kivi.Keys, "encode", lambda self, x: (x * float("nan"), kivi.Stored()))
    rows, run = measured(text, "full", "sim:kivi-2:group=32,residual=32")
    assert list(rows) == ["full"] and "NaN" in run.not_run["sim:kivi-2:group=32,residual=32"]


def test_kvpress_is_refused_with_the_remedy():
    if tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (5, 3):
        pytest.skip("this Transformers is one that kvpress wants")
    (choice,) = parse_choices("", "kvpress:SnapKV")
    with pytest.raises(CannotRun, match=r"kvpress:SnapKV: .*< 5.3.*pip install"):
        choice.make(small_model(), 1)


def test_quanto(text):
    if importlib.util.find_spec("optimum") is None:
        (choice,) = parse_choices("", "quanto-int4")
        with pytest.raises(CannotRun, match="optimum-quanto is not installed"):
            choice.make(small_model(), 1)
        return
    rows, _ = measured(text, "full", "quanto-int4,quanto-int2")
    # 4 or 2 bits, a scale and a shift of float32 for 64 numbers, and the tokens since the prompt in float32
    tail = 32 * 6 / 406
    assert rows["quanto-int4"]["bits_per_element"] == pytest.approx(5 + tail, abs=0.2)
    assert rows["quanto-int2"]["bits_per_element"] == pytest.approx(3 + tail, abs=0.2)
    assert rows["quanto-int4"]["kld_mean"] < rows["quanto-int2"]["kld_mean"]


def test_storage_counts_each_storage_once():
    x = torch.zeros(10, 4)
    assert storage_of({"a": x, "b": [x[:2], x]}) == 160


def test_equal_bytes_reads_between_points():
    def row(cache, kind, bits, kld):
        return {"cache": cache, "kind": kind, "bits_per_element": bits, "kld_mean": kld}

    rows = [row("mikv-max", "mikv", 2.0, 0.04), row("mikv", "mikv", 4.0, 0.01), row("h2o", "mikv", 3.0, 9.0),
            row("p", "peer", 3.0, 0.2), row("q", "peer", 5.0, 0.2)]  # fmt: skip
    equal_bytes(rows)
    assert rows[3]["times_mikv_at_equal_bits"] == pytest.approx(10)
    assert rows[4]["times_mikv_at_equal_bits"] is None


def test_names_are_split_between_caches():
    assert split_specs("full, mikv:keep=0.2,bits=2.4,h2o") == ["full", "mikv:keep=0.2,bits=2.4", "h2o"]
    assert split_specs("mikv,keep=0.2,full") == ["mikv:keep=0.2", "full"]
    assert [c.kind for c in parse_choices("full", "dynamic,sim:kivi-2")] == ["mikv", "peer", "simulated"]
    for kv, peers in (("mikkv", ""), ("", "quanto-int3"), ("", "sim:kivi-77"), ("", "nothing"), ("", "")):
        with pytest.raises(ValueError):
            parse_choices(kv, peers)


def test_short_text_is_one_line(text):
    with pytest.raises(UsageError, match=r"has 1200 tokens.*use a longer text"):
        measured(text, "full", chunks=9)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "nowhere", "--text"],
        ["--model", "nowhere"],
        ["--model", "nowhere", "--gguf", "no.gguf", "--text", "x"],
        ["--model", "nowhere", "--text", "x", "--peers", "nothing"],
        ["--model", "nowhere", "--text", "x", "-o", "/nowhere/at/all.json"],
        ["--model", "nowhere", "--text", "x", "--tokens", "0"],
    ],
)
def test_errors_are_one_line_and_exit_2(arguments, capsys):
    assert run("mikv.compare", command.main, arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("mikv.compare: ") and message.count("\n") == 1


def test_command_writes_json_and_interrupts_keep_rows(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_load", lambda args: (small_model(), Letters()))
    out = tmp_path / "a blank.json"
    arguments = ["--model", "small", "--text", text, "--context", "300", "--tokens", "3", "--chunks", "2", "--timed", "1",
                 "--kv", "full,mikv", "--peers", "dynamic,sim:kivi-2", "-o", str(out)]  # fmt: skip
    if importlib.util.find_spec("matplotlib"):
        arguments += ["--plot", str(tmp_path / "out.svg")]
    assert command.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [row["cache"] for row in found["rows"]] == ["full", "mikv", "dynamic", "sim:kivi-2"]
    assert shlex.split(found["meta"]["command"]) == ["python", "-m", "mikv.compare", *arguments]
    assert found["meta"]["context"] == 300 and found["rows"][0]["n"] == 6
    values = found["rows"][1]["divergences"]["letters"]
    assert statistics.fmean(values) == pytest.approx(found["rows"][1]["kld_mean"])
    capsys.readouterr()

    made = Run._time

    def interrupt(self, *rest):
        made(self, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_time", interrupt)
    assert command.main(arguments) == 130
    assert "full" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["meta"]["interrupted"] and found["rows"][0]["n"] == 3


def test_a_read_only_folder_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert run("mikv.compare", command.main, ["--model", "m", "--text", "x", "-o", str(tmp_path / "out.json")]) == 2
    assert "is read-only" in capsys.readouterr().err
