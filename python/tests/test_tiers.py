"""Transformers and a program that feeds a context itself choose the same tiers.

That llama.cpp chooses them too is shown in adapters/llama/tests/same_tiers_test.cpp; that the C API, which Python calls, is the
C++ library, in tests/c_api_test.cpp."""

from __future__ import annotations

import pytest
import torch
from conftest import CACHE, cache_for, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mikv


@pytest.mark.parametrize("spec", ("mikv", "h2o", "snapkv", "mikv-paper"))
def test_transformers_and_a_context_choose_the_same_tiers(llama, spec, monkeypatch):
    config = llama.config
    own = mikv.Context(spec, n_cells=2048)
    for layer in range(config.num_hidden_layers):
        own.add_layer(layer, mikv.LayerShape(4, 2, 16, 16))
    recorded = []
    ours = ALL_ATTENTION_FUNCTIONS["mikv"]

    def record(module, query, key, value, *args, **kwargs):
        recorded.append([x[0].transpose(0, 1).contiguous().clone() for x in (query, key, value)])
        return ours(module, query, key, value, *args, **kwargs)

    cache = cache_for(llama, spec)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "mikv", record)
    ids = prompt(310)["input_ids"]
    for part in (ids[:, :300], *ids[:, 300:].split(1, 1)):
        recorded.clear()
        with torch.no_grad():
            llama(part, **{CACHE: cache})
        with own.step([(0, part.shape[1])]) as step:
            for layer, (q, k, v) in enumerate(recorded):
                step.attend(layer, q, k, v)

    tiers = set()
    for layer in range(config.num_hidden_layers):
        for head in range(2):
            theirs, mine = cache.tokens(layer, head), own.tokens(layer, head)
            assert (theirs.position == mine.position).all()
            assert (theirs.tier == mine.tier).all()
            tiers |= set(mine.tier.tolist())
    assert mikv.Tier.HI in tiers and len(tiers) > 1
