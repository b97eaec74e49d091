"""python -m mikv.inspect on a small random model: what the page holds is what the cache holds."""

from __future__ import annotations

import base64

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from conftest import prompt as random_prompt
from conftest import tiny
from pages import Page, pixels_of, screenshot, shown
from tiny import save_tiny_model, word

import mikv
from mikv._cli import run
from mikv.inspect import __main__ as command
from mikv.inspect import page
from mikv.inspect.record import ABSENT, hold, pieces

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\u202eabc",
    "\ud83d",
    "a\u2028b",
    "&amp;\x00",
)


def unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """What page.packed() gave, as JavaScript reads it."""
    bits = np.frombuffer(base64.b64decode(text), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    text = " ".join(word(7 * i + i * i) for i in range(300))
    (folder / "prompt.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(tiny_folder):
    """The page of two specs, as a file."""
    out = tiny_folder / "page.html"
    options = ["--model", str(tiny_folder), "-f", str(tiny_folder / "prompt.txt"), "-n", "5", "-o", str(out)]
    assert run("mikv.inspect", command.main, [*options, "--kv", "mikv", "--kv", "h2o"]) == 0
    return out


def test_the_page_holds_what_the_cache_holds(made, tiny_folder):
    whole = Page(made.read_text(encoding="ascii"))
    whole.check()
    assert "--kv mikv --kv h2o" in "".join(whole.words) and "bits per element" in "".join(whole.words)
    data = whole.data
    assert data["heads"] == 2 and data["layers"] == [0, 1] and [r["spec"] for r in data["runs"]] == ["mikv", "h2o"]
    assert len(data["prompt"]) == 300
    assert "".join(data["prompt"]) == (tiny_folder / "prompt.txt").read_text()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="mikv")
    ids = AutoTokenizer.from_pretrained(tiny_folder)((tiny_folder / "prompt.txt").read_text())["input_ids"]
    for run_data in data["runs"]:
        cache = mikv.hf.Cache(run_data["spec"], config=model.config, max_length=512)
        n = 300 + len(run_data["answer"])
        out = model.generate(torch.tensor([ids]), past_key_values=cache, max_new_tokens=5, do_sample=False)
        assert out.shape[1] == n
        scores = unpacked(run_data["scores"], (2, 2, n))
        for layer in range(2):
            for head in range(2):
                states = cache.tokens(layer, head)
                digits = run_data["tiers"][(layer * 2 + head) * n :][:n]
                assert [int(d) for d in digits[: n - 1]] == states.tier.tolist()
                assert digits[-1] == str(ABSENT), "no step has read the last token"
                np.testing.assert_allclose(scores[layer, head, : n - 1], states.score, rtol=2**-8)
        assert ("3" in run_data["tiers"]) == (run_data["spec"] == "h2o")


@pytest.mark.parametrize("kind", ("llama", "mistral", "gemma2", "mqa"))
def test_importance_is_what_h2o_counts(kind):
    """The sums of attention that are computed in torch are the cache's own scores, which come from its kernels."""
    model = tiny(kind)
    model.set_attn_implementation("mikv")
    held = hold(model, random_prompt(300)["input_ids"][0].tolist(), "h2o", 4)
    kept = held.scores > 0
    assert kept.any(axis=2).all()
    # The cache's keys are halves: a logit of 8 moves by at most 8 x 2^-11.
    np.testing.assert_allclose(held.received[kept], held.scores[kept], rtol=0.004)


def test_attention_of_the_answer_is_that_of_an_exact_model():
    model = tiny()
    ids = random_prompt(40)["input_ids"]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        first = model(ids, output_attentions=True)
    model.set_attn_implementation("mikv")
    held = hold(model, ids[0].tolist(), "full", 3)
    assert held.looked.shape == (3, 3, 43)
    for layer, weights in enumerate(first.attentions):
        # Layers after the first see what attention over halves gave before them.
        exact, close = weights[0, :, -1].mean(0), 0.02 if layer else 1e-4
        np.testing.assert_allclose(held.looked[layer, 0, :40], exact, rtol=close, atol=1e-6)
    np.testing.assert_allclose(held.looked.sum(axis=2), 1, rtol=1e-5)
    assert (held.looked[:, 0, 40:] == 0).all(), "nothing is there yet when the first token is written"


def test_evicted_tokens_get_no_attention(llama):
    llama.set_attn_implementation("mikv")
    before, held = (hold(llama, random_prompt(300)["input_ids"][0].tolist(), "h2o", n) for n in (3, 4))
    gone = (before.tiers[:, :, :302] == mikv.Tier.EVICTED).all(axis=1)
    assert gone.sum() > 100 and (held.looked[:, -1, :302][gone] == 0).all()
    assert (held.looked[:, 0, :300] > 0).mean() > 0.9, "the first token is written before anything is evicted"


def test_short_prompts_wait(llama):
    llama.set_attn_implementation("mikv")
    held = hold(llama, random_prompt(20)["input_ids"][0].tolist(), "mikv", 1)
    assert (held.tiers[:, :, :20] == mikv.Tier.STAGED).all() and (held.tiers[:, :, 20] == ABSENT).all()


def held_of(llama, spec="mikv"):
    llama.set_attn_implementation("mikv")
    return hold(llama, random_prompt(len(HOSTILE))["input_ids"][0].tolist(), spec, 2)


def test_hostile_text_stays_text(llama):
    held = held_of(llama)
    whole = Page(page.build("<b>m</b>", list(HOSTILE), [held], [["</script>", "\udcff"]], "x '<script>' \udcff"))
    whole.check()
    assert whole.data["prompt"] == list(HOSTILE) and whole.data["runs"][0]["answer"] == ["</script>", "\udcff"]
    assert "b" not in whole.tags[:12] and "<b>m</b>" in "".join(whole.words)


def test_packed_numbers():
    x = np.array([0, 1, 3.14159, 1e-30, 65504, 3.4e38, np.inf], np.float32)
    back = unpacked(page.packed(x), x.shape)
    np.testing.assert_allclose(back[:5], x[:5], rtol=2**-8)
    assert np.isfinite(back).all() and back[5] > 1e38


class Bytes:
    """A tokenizer of bytes: characters are parts of up to four tokens."""

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("text", ("plain", "na\u00efve \u4f60\u597d \U0001f600!", "\u4f60", ""))
def test_pieces_are_the_text(text):
    texts = pieces(Bytes(), list(text.encode()))
    assert "".join(texts) == text and len(texts) == len(text.encode())


def test_pieces_of_broken_bytes():
    ids = [0x61, 0xFF, 0xE4, 0xBD, 0x62]
    texts = pieces(Bytes(), ids)
    assert len(texts) == 5 and "".join(texts) == "a\ufffd\ufffdb"


@pytest.mark.parametrize("options, message", [
    (["-f", "missing.txt"], "missing.txt"), (["-f", "EMPTY"], "empty"), (["-n", "0"], "-n 0"), (["-n", "4000"], "4096"),
    (["--kv", "nonsense"], "nonsense"), (["--kv", "mikv"] * 3, "3 times"), (["-o", "no/such/page.html"], "no folder"),
    (["--chat"], "chat template"), (["--gguf", "x.gguf"], "x.gguf")])  # fmt: skip
def test_mistakes_are_one_line(tiny_folder, tmp_path, capsys, options, message):
    (tmp_path / "empty.txt").write_text(" \n")
    options = [str(tmp_path / "empty.txt") if o == "EMPTY" else o for o in options]
    usual = ["--model", str(tiny_folder), "-f", str(tiny_folder / "prompt.txt"), "-o", str(tmp_path / "page.html")]
    assert run("mikv.inspect", command.main, usual + options) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


def test_a_browser_draws_the_tokens(made, tmp_path):
    dom = shown(tmp_path, made)
    assert dom.count('role="option"') == 610 and 'class="token t1"' in dom and 'class="token t3"' in dom
    assert "high precision" in dom and "This head:" in dom


#: A user's hands, and a test of what the page then says. The title tells what is wrong, or "as it should be".
HANDS = """
const wrong = [];
const expect = (what, is, should) => is === should || wrong.push(`${what}: ${is}, not ${should}`);
const set = (id, value) => {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event("input", { bubbles: true }));
};
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const tierOf = (run, row, i) => "token t" + run.tiers[row * run.n + i];
set("layer", 1);
set("head", 1);
for (const run of runs) run.tokens.forEach((token, i) => expect("token " + i, token.className, tierOf(run, 3, i)));
focus(runs[1], 0);
press("ArrowRight");
expect("after the arrow", document.activeElement, runs[1].tokens[1]);
expect("tooltip", !tip.hidden && tip.textContent.startsWith("Token 1: "), true);
expect("its name", document.activeElement.ariaLabel, tip.textContent);
expect("tab stops", runs[1].tokens.filter((token) => token.tabIndex === 0).length, 1);
press("ArrowDown");
press("ArrowUp");
expect("down and up", document.activeElement, runs[1].tokens[1]);
press("End");
expect("at the end", document.activeElement, runs[1].tokens[runs[1].n - 1]);
document.querySelector("input[value=looked]").click();
press("ArrowLeft");
press("Enter");
expect("chosen", runs[1].chosen, runs[1].n - 2);
expect("marked", runs[1].tokens[runs[1].n - 2].ariaSelected, "true");
expect("head is off", byId("head").disabled, true);
const looked = runs[1].tokens.slice(0, runs[1].chosen).reduce((sum, _, i) => sum + lookedAt(runs[1], i), 0);
expect("attention", Math.abs(looked - 1) < 0.01, true);
byId("all").click();
document.querySelector("input[value=tier]").click();
expect("share", runs[0].tokens[299].style.getPropertyValue("--w"), "1.000");
press("Escape");
expect("escape", tip.hidden, true);
document.title = wrong.join("; ") || "as it should be";
"""


def test_a_browser_obeys_the_keyboard(made, tiny_folder, tmp_path, monkeypatch):
    part = page._page.part
    monkeypatch.setattr(page._page, "part", lambda name, *at: part(name, *at) + (HANDS if name == "page.js" else ""))
    options = [
        "--model",
        str(tiny_folder),
        "-f",
        str(tiny_folder / "prompt.txt"),
        "-n",
        "5",
        "--kv",
        "mikv",
        "--kv",
        "h2o",
    ]
    assert run("mikv.inspect", command.main, [*options, "-o", str(tmp_path / "page.html")]) == 0
    dom = shown(tmp_path, tmp_path / "page.html")
    assert "<title>as it should be</title>" in dom, dom[: dom.find("</title>")][-2000:]


def test_a_browser_runs_no_hostile_text(llama, tmp_path):
    held = held_of(llama)
    file = tmp_path / "hostile.html"
    file.write_text(page.build("m", list(HOSTILE), [held], [["</span><b>x</b>", "y"]], "c"), encoding="ascii")
    dom = shown(tmp_path, file)
    assert "&lt;script&gt;alert(1)" in dom and "&lt;/span&gt;&lt;b&gt;x" in dom and "<img" not in dom
    assert dom.count('role="option"') == len(HOSTILE) + 2


@pytest.mark.parametrize("width", (1280, 390))
@pytest.mark.parametrize("dark", (False, True))
def test_a_browser_shows_it_in_light_and_dark(made, tmp_path, width, dark):
    picture = pixels_of(screenshot(tmp_path, made, width, dark))[:, :width]
    paper = np.median(picture.reshape(-1, 3), axis=0)
    assert (paper < 0.4).all() if dark else (paper > 0.6).all()
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 20
