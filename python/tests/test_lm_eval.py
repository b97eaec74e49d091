"""The lm-eval model: log-likelihoods go through the compressed cache."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm_eval==0.4.13")
pytest.importorskip("transformers", reason="transformers is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from tiny import save_tiny_model, word  # noqa: E402

from mikv._cli import UsageError  # noqa: E402
from mikv.lm_eval.__main__ import model_args, with_model_args  # noqa: E402
from mikv.lm_eval.model import MikvLM, ReadContext  # noqa: E402
from mikv.spec import Spec  # noqa: E402

N_CONTEXT = 400  #: more than the 256 tokens from which a context is compressed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def requests() -> list[Instance]:
    """Two contexts, each with continuations of one token, of several, and two that share all but their last."""
    rng = random.Random(3)
    made = []
    for n in (N_CONTEXT, N_CONTEXT + 13):
        context = " ".join(word(rng.randrange(400)) for _ in range(n))
        for continuation in ("w1", "w2", "w5 w6 w7", "w5 w6 w8", " ".join(word(i) for i in range(70))):
            made.append(Instance("loglikelihood", {}, (context, " " + continuation), len(made)))
    return made


def log_likelihoods(folder: Path, spec: str) -> tuple[list[float], MikvLM]:
    lm = MikvLM(str(folder), spec=spec)
    return [answer[0] for answer in lm.loglikelihood(requests(), disable_tqdm=True)], lm


def test_full_equals_hf_and_a_ruined_cache_shows(folder):
    theirs = [a[0] for a in HFLM(str(folder), device="cpu").loglikelihood(requests(), disable_tqdm=True)]
    full, _ = log_likelihoods(folder, "full")
    n_tokens = [len(request.args[1].split()) for request in requests()]
    # Keys and values rounded to f16 have a relative error of 2^-11 each; logits here are of the order of 1.
    for ours, reference, n in zip(full, theirs, n_tokens, strict=True):
        assert ours == pytest.approx(reference, abs=0.002 * n)
    tiers, lm = log_likelihoods(folder, "mikv")
    ruined, _ = log_likelihoods(folder, "h2o:keep=0.02")

    def away(values: list[float]) -> float:
        """Mean distance per token."""
        return sum(abs(a - b) / n for a, b, n in zip(values, theirs, n_tokens, strict=True)) / len(theirs)

    assert away(ruined) > 0.1
    assert away(ruined) > 3 * away(tiers)
    # One-token continuations too: they are not scored by the exact prefill.
    assert max(abs(ruined[i] - theirs[i]) for i in (0, 1, 5, 6)) > 0.1
    info = lm.get_model_info()
    assert info["mikv_contexts"] == 2 and info["mikv_contexts_too_short_to_compress"] == 0
    assert 1 < info["mikv_bits_per_element"] < 16
    assert info["mikv_spec"] == "mikv"


def test_one_prefill_serves_all_continuations(folder, monkeypatch):
    lm = MikvLM(str(folder), spec="mikv")
    lengths = []
    forward = lm.model.forward

    def counted(input_ids=None, **kwargs):
        lengths.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(lm.model, "forward", counted)
    together = lm.loglikelihood(requests(), disable_tqdm=True)
    assert sum(n > 100 for n in lengths) == 2
    # The order of continuations, and which there are, change nothing.
    alone = [lm.loglikelihood([request], disable_tqdm=True)[0] for request in requests()]
    assert [a[0] for a in together] == pytest.approx([a[0] for a in alone], abs=1e-4)


def test_the_context_is_compressed_before_the_continuation(folder):
    lm = MikvLM(str(folder), spec="mikv")
    with torch.no_grad():
        context = ReadContext(lm.model, Spec("mikv"), list(range(3, 3 + 300)))
        usage = context.cache.memory_usage()
        assert usage.staged == 0 and usage.bits_per_element < 16
        rows = context.log_probabilities([5, 6, 7])
    assert rows.shape == (3, lm.model.config.vocab_size)


def test_a_short_context_is_counted(folder):
    lm = MikvLM(str(folder), spec="h2o:keep=0.02")
    lm.loglikelihood([Instance("loglikelihood", {}, ("w1 w2 w3", " w4"), 0)], disable_tqdm=True)
    assert lm.get_model_info()["mikv_contexts_too_short_to_compress"] == 1


def test_rolling_reads_a_long_text_through_the_cache(folder):
    text = " ".join(word(7 * i % 400) for i in range(600))
    request = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    theirs = HFLM(str(folder), device="cpu").loglikelihood_rolling(request, disable_tqdm=True)[0]
    full = MikvLM(str(folder), spec="full").loglikelihood_rolling(request, disable_tqdm=True)[0]
    ruined = MikvLM(str(folder), spec="h2o:keep=0.02").loglikelihood_rolling(request, disable_tqdm=True)[0]
    assert full == pytest.approx(theirs, abs=0.002 * 600)
    assert abs(ruined - theirs) > 10 * abs(full - theirs)


def test_generation_goes_through_the_cache(folder):
    long = " ".join(word(i * i) for i in range(300))
    made = [
        Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8, "do_sample": False}), i)
        for i, text in enumerate((long, "w1 w2 w3"))  # the second is padded
    ]
    theirs = HFLM(str(folder), device="cpu", batch_size=2).generate_until(made, disable_tqdm=True)
    lm = MikvLM(str(folder), spec="full", batch_size=2)
    assert lm.generate_until(made, disable_tqdm=True) == theirs
    assert lm.n_contexts == 2 and lm.n_bytes > 0
    assert lm.n_short_contexts == 1, "padding does not make a context long"


def test_model_args(tmp_path):
    assert model_args(["pretrained=a,spec=mikv", "dtype=float32"]) == ["pretrained=a,spec=mikv,dtype=float32"]
    assert with_model_args(["run", "--model_args", "pretrained=a", "x=1", "--tasks", "t"]) == [
        "run", "--model_args", "pretrained=a,x=1", "--tasks", "t"]  # fmt: skip
    # Keys that follow a spec are its own; lm-eval, which splits at commas, gets semicolons.
    assert model_args(["spec=mikv:keep=0.2,hi=f16", "lo=int2,dtype=float32,seed=3"]) == [
        "spec=mikv:keep=0.2;hi=f16;lo=int2,dtype=float32,seed=3"]  # fmt: skip
    assert model_args(["spec=mikv,keep=0.2,hi=f16"]) == ["spec=mikv:keep=0.2;hi=f16"]
    assert model_args(["spec=mikv:keep=0.2;hi=f16,"]) == ["spec=mikv:keep=0.2;hi=f16"]
    with pytest.raises(UsageError, match="'balanced' has no value"):
        model_args(["pretrained=a,spec=mikv:keep=0.2,balanced"])


@pytest.mark.parametrize("arguments, message", [
    ({"spec": "mikw"}, "mikw"), ({"piece": 0}, "1 to 64"), ({"device": "mps"}, "CPU")])  # fmt: skip
def test_wrong_arguments(folder, arguments, message):
    with pytest.raises((UsageError, ValueError), match=message):
        MikvLM(str(folder), **arguments)


def test_spec_with_several_parts(folder):
    assert str(MikvLM(str(folder), spec="mikv:keep=0.3;hi=f16").spec) == "mikv:keep=0.3,hi=f16"


TASK = """\
task: lookup
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: 0
doc_to_choice: ["w1", "w2 w3"]
metric_list: [{{metric: acc}}]
"""


@pytest.mark.long
def test_command(folder, tmp_path):
    """lm-eval's own command on a task of our own, offline."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": " ".join(word(i * k) for i in range(300))}) + "\n" for k in (1, 3)))
    (tmp_path / "lookup.yaml").write_text(TASK.format(data=data))
    command = [sys.executable, "-m", "mikv.lm_eval"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"),
                   "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    arguments = ["--model", "mikv-hf", "--model_args", f"pretrained={folder},spec=mikv", "--tasks", "lookup",
                 "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())
    assert results["config"]["mikv_contexts"] == 2
    assert "acc,none" in results["results"]["lookup"]
    shown = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "example" in shown.stdout and "spec=" in shown.stdout
