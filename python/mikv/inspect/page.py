"""The page of python -m mikv.inspect: its data, and the HTML around them. page.js draws."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _page
from .record import Held

_FOLDER = Path(__file__).parent

_BODY = """\
<header>
<h1>{model}: {n_prompt} tokens of prompt, {n_layers} layers of {n_heads} KV heads</h1>
<p class="soft">Which tokens a cache holds in high precision. Each KV head of each layer chooses for itself.</p>
</header>
<noscript><p>This page draws with a script of its own; allow it to see the tokens.</p></noscript>
<form id="controls" autocomplete="off">
<label>Layer <output id="layer-now"></output>
<input id="layer" type="range" min="0" max="{last_layer}" value="{layer}"></label>
<label>KV head <output id="head-now"></output>
<input id="head" type="range" min="0" max="{last_head}" value="0"></label>
<label class="check"><input id="all" type="checkbox"> all heads of all layers</label>
<fieldset><legend>Colour by</legend>
<label><input type="radio" name="by" value="tier" checked> tier</label>
<label><input type="radio" name="by" value="received"> importance</label>
<label><input type="radio" name="by" value="looked"> attention of the answer</label>
</fieldset>
</form>
<p id="legend" aria-live="polite"></p>
<main id="runs">
{runs}
</main>
<details><summary>What this shows</summary>
<dl>
<dt>High</dt><dd>Important and recent tokens, in high precision (tier hi).</dd>
<dt>Low</dt><dd>All other tokens, in few bits (tier lo).</dd>
<dt>Evicted</dt><dd>Keys and values are dropped. Only specs with lo=evict do it.</dd>
<dt>Waiting</dt><dd>Stored in f16, not compressed yet. Fewer than 256 tokens are not compressed.</dd>
<dt>Not held</dt><dd>Outside of the layer's window, or the last token of the answer, which no step has read.</dd>
<dt>Importance</dt><dd>The attention that a token has received: summed over queries and the query heads of its KV head.
Computed in torch from the model's exact queries and keys. For all heads: the mean of its shares of each head's sum.</dd>
<dt>Score</dt><dd>What the cache itself ranks tokens by. It keeps scores of high tokens only; each policy has its own.</dd>
<dt>Attention of the answer</dt><dd>Where the model looked as it wrote the chosen token of the answer: the attention of the
token before it, the mean over the query heads of the layer, from exact keys. Evicted tokens get none.</dd>
</dl></details>
{footer}
"""

_RUN = """\
<section class="run" aria-labelledby="run-{i}"><h2 id="run-{i}">{spec}</h2>
<p><b>{bits:.2f}</b> bits per element, <b>{size}</b>; f16 has 16 bits, {f16}.</p>
<p class="soft">{parts}</p>
<canvas class="map" id="map-{i}" width="{n}" height="{n_rows}" role="img"
aria-label="Tiers of all tokens: a line for each of {n_rows} heads, a column for each of {n} tokens"></canvas>
<p class="counts" id="counts-{i}"></p>
<div class="tokens" id="tokens-{i}" role="listbox" aria-label="Tokens under {spec}; arrow keys move" dir="auto"></div>
</section>"""

_PARTS = ("staged", "hi", "lo", "scales", "ids", "scores", "calibration", "slack")


def build(model: str, prompt: list[str], runs: list[Held], answers: list[list[str]], command_line: str) -> str:
    """The whole page. prompt and answers: the text of each token."""
    first = runs[0]
    n_layers, n_heads, _ = first.tiers.shape
    body = _BODY.format(
        model=html.escape(model),
        n_prompt=len(prompt),
        n_layers=n_layers,
        n_heads=n_heads,
        last_layer=n_layers - 1,
        last_head=n_heads - 1,
        layer=n_layers // 2,
        runs="\n".join(_run(i, run) for i, run in enumerate(runs)),
        footer=_page.footer(command_line),
    )
    data = {
        "prompt": prompt,
        "layers": first.layers,
        "heads": n_heads,
        "runs": [_data(run, answer) for run, answer in zip(runs, answers, strict=True)],
    }
    names = " and ".join(run.spec for run in runs)
    return _page.build(
        f"{model}: tokens under {names}",
        body,
        data,
        style=_page.part("page.css", _FOLDER),
        scripts=[_page.part("page.js", _FOLDER)],
    )


def _run(i: int, run: Held) -> str:
    usage = run.usage
    parts = [f"{name} {_page.size(getattr(usage, name))}" for name in _PARTS if getattr(usage, name)]
    n_layers, n_heads, n = run.tiers.shape
    return _RUN.format(
        i=i,
        n=n,
        n_rows=n_layers * n_heads,
        spec=html.escape(run.spec),
        bits=usage.bits_per_element,
        size=_page.size(usage.total),
        f16=_page.size(2 * usage.n_elements),
        parts=", ".join(parts),
    )


def _data(run: Held, answer: list[str]) -> dict[str, Any]:
    """Tiers as a digit per token, [layers][KV heads][tokens]; numbers as bfloat16 in Base64."""
    return {
        "spec": run.spec,
        "answer": answer,
        "tiers": (run.tiers + ord("0")).tobytes().decode("ascii"),
        "scores": packed(run.scores),
        "received": packed(run.received),
        "looked": packed(run.looked),
    }


def packed(x: npt.NDArray[np.float32]) -> str:
    """bfloat16, little-endian, in Base64: two digits of precision over the range of float32."""
    bits = np.minimum(np.ascontiguousarray(x, np.float32), np.float32(3e38)).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return base64.b64encode(rounded.astype("<u2").tobytes()).decode("ascii")
