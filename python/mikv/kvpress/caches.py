"""Caches that the pipeline fills, and how many bytes they hold once the context is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .. import hf
from .._config import head_dim_of
from ..spec import Spec

#: Bytes of a number in the cache that everything is compared with.
F16 = 2


class TieredPress:
    """What the pipeline takes for a press: it reads the context, then compresses the cache, before the question comes.

    The question's own attention therefore cannot tell which tokens of the context are important, as with kvpress's
    presses. compression_ratio is what was measured last.
    """

    def __init__(self, spec: Spec | str) -> None:
        self.spec = Spec(spec)
        self.compression_ratio = 0.0
        self.cache: hf.Cache | None = None
        self.n_bytes = 0

    def new_cache(self, model: Any) -> hf.Cache:
        self.cache = hf.Cache(self.spec, config=model.config)
        return self.cache

    @contextlib.contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        yield
        if self.cache is None:
            raise RuntimeError("new_cache() was not called before the pipeline")
        n_tokens = self.cache.get_seq_length()
        self.cache.compress()
        self.n_bytes = self.cache.memory_usage().total
        self.compression_ratio = 1 - self.n_bytes / f16_bytes(model.config, n_tokens)

    def __str__(self) -> str:
        return f"mikv.hf.Cache({str(self.spec)!r})"


def f16_bytes(config: Any, n_tokens: int) -> int:
    """Bytes of keys and values of n_tokens in 16 bits."""
    config = config.get_text_config(decoder=True)
    head_dim = head_dim_of(config)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(config.num_hidden_layers * 2 * n_kv_heads * head_dim * n_tokens * F16)


def press_bytes(model: Any, cache: Any) -> tuple[int, int]:
    """Bytes of what a press left in a DynamicCache, every number in 16 bits, and those of them that it only masked.

    Some presses (AdaKV) drop tokens of single heads. They leave them in memory and mask them, so that they save
    nothing; the second number is what they would save.
    """
    n_elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    n_masked = 0
    for module in model.modules():
        masked = getattr(module, "masked_key_indices", None)
        if masked is not None:
            layer = cache.layers[module.layer_idx]
            n_masked += len(masked[0]) * (layer.keys.shape[3] + layer.values.shape[3])
    return n_elements * F16, n_masked * F16
