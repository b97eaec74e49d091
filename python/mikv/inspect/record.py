"""What a cache held of a prompt and its answer, and what attention did meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .._cli import context_for
from ..context import MemoryUsage, Tier
from ..hf import ATTENTION, Cache, Layer

#: The tier of a token that a head does not hold: outside of its window, or the last of the answer, which no step has read.
ABSENT = 4
#: Queries whose attention is computed at once.
_AT_ONCE = 128


@dataclass
class Held:
    """Arrays are [layers][KV heads][tokens], tokens of the prompt and of the answer."""

    spec: str
    usage: MemoryUsage
    answer: list[int]  #: ids of its tokens
    layers: list[int]  #: numbers of the model's layers that are in tiers
    tiers: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]  #: as the cache keeps them; 0 where it keeps none
    received: npt.NDArray[np.float32]  #: attention that each token received, summed over queries and query heads
    looked: npt.NDArray[np.float32]  #: [layers][answer tokens][tokens]: attention from where the token was written


@dataclass
class _LayerAttention:
    keys: torch.Tensor  #: [KV heads][tokens][channels]
    received: torch.Tensor  #: [KV heads][tokens]
    looked: list[torch.Tensor] = field(default_factory=list)  #: by pass: of its last token, mean over query heads


class Recorder:
    """Computes the attention of each pass again, in torch, from the exact queries and keys that the model gives to "mikv".

    The model goes on with what the cache answers. Evicted tokens get no attention; keys in few bits count as exact.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.layers: dict[int, _LayerAttention] = {}

    def __enter__(self) -> Recorder:
        self._ours = ALL_ATTENTION_FUNCTIONS[ATTENTION]
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = self._attention
        return self

    def __exit__(self, *_: object) -> None:
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = self._ours

    def _attention(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Before the cache attends: a head compresses and evicts at the end of its attention.
        scaling = kwargs.get("scaling")
        self._add(
            int(module.layer_idx),
            query[0].detach().to(torch.float32),
            key[0].detach().to(torch.float32),
            query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            int(kwargs.get("sliding_window") or 0),
            float(kwargs.get("softcap") or 0.0),
            kwargs.get("s_aux"),
        )
        return self._ours(module, query, key, value, mask, *args, **kwargs)

    def _add(
        self, index: int, q: torch.Tensor, k: torch.Tensor, scale: float, window: int, softcap: float, sinks: Any
    ) -> None:
        n_heads, n_new, channels = q.shape
        before = self.layers.get(index)
        keys = k.clone() if before is None else torch.cat((before.keys, k), dim=1)
        n_kv_heads, n = keys.shape[:2]
        received = torch.zeros(n_kv_heads, n)
        looked: list[torch.Tensor] = []
        if before is not None:
            received[:, : n - n_new] = before.received
            looked = before.looked
        grouped = q.reshape(n_kv_heads, n_heads // n_kv_heads, n_new, channels)
        places = torch.arange(n)
        weights = torch.zeros(0)
        for first in range(0, n_new, _AT_ONCE):
            part = grouped[:, :, first : first + _AT_ONCE]
            logits = scale * torch.einsum("hgqc,hkc->hgqk", part, keys)
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            back = (n - n_new + first + torch.arange(part.shape[2]))[:, None] - places
            hidden = (back < 0) | (back >= window) if window else back < 0
            logits = logits.masked_fill(hidden, -torch.inf)
            if n_new == 1 and before is not None:
                logits = logits.masked_fill(self._evicted(index, n_kv_heads, n)[:, None, None], -torch.inf)
            if sinks is not None:
                sink = sinks.detach().to(torch.float32).reshape(n_kv_heads, -1, 1, 1).expand(*logits.shape[:3], 1)
                logits = torch.cat((logits, sink), dim=3)
            weights = torch.softmax(logits, dim=3)[..., :n]
            received += weights.sum(dim=(1, 2))
        looked.append(weights[:, :, -1].mean(dim=(0, 1)))
        self.layers[index] = _LayerAttention(keys, received, looked)

    def _evicted(self, layer: int, n_kv_heads: int, n: int) -> torch.Tensor:
        """[KV heads][tokens]: what the cache holds no more."""
        gone = torch.zeros(n_kv_heads, n, dtype=torch.bool)
        for head in range(n_kv_heads):
            states = self._cache.tokens(layer, head)
            gone[head, torch.from_numpy(states.position[states.tier == Tier.EVICTED]).long()] = True
        return gone


def hold(model: Any, ids: list[int], spec: str, n_new: int) -> Held:
    """Reads the prompt, writes an answer of at most n_new tokens by greedy choice, and tells what the cache holds."""
    cache = Cache(spec, config=model.config, max_length=context_for(len(ids) + n_new))
    with torch.no_grad(), Recorder(cache) as recorder:
        answer = _answer(model, ids, cache, n_new)
    layers = [layer.index for layer in cache.layers if isinstance(layer, Layer)]
    n = len(ids) + len(answer)
    n_heads = recorder.layers[layers[0]].keys.shape[0]
    held = Held(
        spec=spec,
        usage=cache.memory_usage(),
        answer=answer,
        layers=layers,
        tiers=np.full((len(layers), n_heads, n), ABSENT, np.uint8),
        scores=np.zeros((len(layers), n_heads, n), np.float32),
        received=np.zeros((len(layers), n_heads, n), np.float32),
        looked=np.zeros((len(layers), len(answer), n), np.float32),
    )
    for i, layer in enumerate(layers):
        attention = recorder.layers[layer]
        held.received[i, :, : attention.received.shape[1]] = attention.received
        for token, weights in enumerate(attention.looked[: len(answer)]):
            held.looked[i, token, : len(weights)] = weights
        for head in range(n_heads):
            states = cache.tokens(layer, head)
            held.tiers[i, head, states.position] = states.tier
            held.scores[i, head, states.position] = states.score
    return held


def _answer(model: Any, ids: list[int], cache: Cache, n_new: int) -> list[int]:
    """As generate() chooses them, one after the other; the prompt is compressed before the first is read."""
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    argument = {"cache" if version >= (5, 24) else "past_key_values": cache}
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    answer: list[int] = []
    new = ids
    while True:
        logits = model(torch.tensor([new]), logits_to_keep=1, **argument).logits
        if not answer:
            cache.compress()
        answer.append(int(logits[0, -1].argmax()))
        if len(answer) == n_new or answer[-1] in ends:
            return answer
        new = answer[-1:]


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token. Of tokens that share a character, the last has it and the others have none."""
    texts: list[str] = []
    first = begin = 0  # of the tokens that share a character, and of those that are decoded before them

    def text_of(a: int, b: int) -> str:
        return str(tokenizer.decode(ids[a:b], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    for i in range(len(ids)):
        known, whole = text_of(begin, first), text_of(begin, i + 1)
        new = whole[len(known) :] if whole.startswith(known) else text_of(i, i + 1)
        if new.endswith("\ufffd") and i - first < 3 and i + 1 < len(ids):  # a character has at most 4 bytes
            texts.append("")
            continue
        texts.append(new)
        begin, first = max(0, i - 3), i + 1
        while begin < i and not texts[begin]:  # begin with a whole character
            begin += 1
    return texts
