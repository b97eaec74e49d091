"""Models and inputs of the tests: small, random, made here. Nothing is fetched."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read where huggingface_hub is imported: a model that is not there fails at once

torch = pytest.importorskip("torch", reason="the tests of mikv.hf need torch and transformers")
transformers = pytest.importorskip("transformers", reason="the tests of mikv.hf need torch and transformers")

from transformers import DynamicCache  # noqa: E402

import mikv.hf  # noqa: E402

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
#: The name of generate()'s and forward()'s argument.
CACHE = "cache" if VERSION >= (5, 24) else "past_key_values"


def tiny(kind: str = "llama", **changes):
    """A random model whose next token depends on all before it."""
    common = dict(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    ) | changes  # fmt: skip
    torch.manual_seed(11)
    if kind == "llama":
        config = transformers.LlamaConfig(**common)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "mistral":  # sliding windows on every layer
        config = transformers.MistralConfig(sliding_window=24, **common)
        model = transformers.MistralForCausalLM(config)
    elif kind == "gemma3":  # windows and full attention by turns
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        config = transformers.Gemma3TextConfig(sliding_window=24, layer_types=types, query_pre_attn_scalar=16, **common)
        model = transformers.Gemma3ForCausalLM(config)
    elif kind == "gemma2":  # softcap
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        config = transformers.Gemma2Config(
            sliding_window=24, layer_types=types, query_pre_attn_scalar=16, attn_logit_softcapping=20.0, **common
        )
        model = transformers.Gemma2ForCausalLM(config)
    elif kind == "mqa":
        config = transformers.LlamaConfig(**common | {"num_key_value_heads": 1})
        model = transformers.LlamaForCausalLM(config)
    else:
        raise ValueError(kind)
    with torch.no_grad():  # weights as large as a trained model's: attention is far from uniform
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


@pytest.fixture(scope="session")
def llama():
    return tiny()


class StockCache(DynamicCache):
    """DynamicCache, with keys and values rounded to halves, as `full` holds them: ties fall alike."""

    def update(self, key_states, value_states, *args, **kwargs):
        dtype = key_states.dtype
        return super().update(key_states.half().to(dtype), value_states.half().to(dtype), *args, **kwargs)


def cache_for(model, spec: str | None, **options):
    """A stock cache (None) or one of ours, with the model set to the attention that goes with it."""
    stock = "eager" if model.config.model_type == "gemma2" else "sdpa"  # sdpa knows no softcap
    model.set_attn_implementation(stock if spec is None else "mikv")
    return StockCache(config=model.config) if spec is None else mikv.hf.Cache(spec, config=model.config, **options)


def generate(model, inputs, spec: str | None, cache=None, **arguments):
    """Tokens, with 16 new ones unless said otherwise, and the cache."""
    cache = cache if cache is not None else cache_for(model, spec)
    torch.manual_seed(3)
    arguments = {"max_new_tokens": 16, "do_sample": False} | arguments
    with torch.no_grad():
        return model.generate(**inputs, **{CACHE: cache}, **arguments), cache


def prompt(n: int, rows: int = 1, seed: int = 5):
    ids = torch.randint(2, 97, (rows, n), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(lengths, seed: int = 5):
    """Rows of different lengths, padded on the left."""
    n = max(lengths)
    inputs = prompt(n, len(lengths), seed)
    for row, length in enumerate(lengths):
        inputs["input_ids"][row, : n - length] = 0
        inputs["attention_mask"][row, : n - length] = 0
    return inputs
