"""MikvLM: lm-eval's model "mikv-hf". Importing this module registers it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from .._cli import UsageError, need

_REMEDY = "install it: pip install lm_eval==0.4.13 torch transformers"

_huggingface = need("lm_eval.models.huggingface", _REMEDY)
_registry = need("lm_eval.api.registry", _REMEDY)

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from .. import hf  # noqa: E402
from ..spec import Spec  # noqa: E402

#: Tokens that one pass reads through the cache. Those of a pass see each other before they are compressed.
PIECE = 32
#: Shorter contexts stay in f16: the library does not compress them.
FEWEST_COMPRESSED = 256

Tokens = list[int]
Request = tuple[Any, Tokens, Tokens]  #: what lm-eval caches by, context, continuation


class ReadContext:
    """A context in a compressed cache, all but its last token.

    log_probabilities() reads that token and a continuation through it.
    """

    def __init__(self, model: Any, spec: Spec, tokens: Tokens, piece: int = PIECE) -> None:
        self._model, self._last, self._piece = model, tokens[-1], piece
        self.cache = _with_drafts(hf.Cache(spec, config=model.config))
        if len(tokens) > 1:
            model(torch.tensor([tokens[:-1]]), past_key_values=self.cache, logits_to_keep=1)
        self.cache.compress()

    def log_probabilities(self, continuation: Tokens, last: bool = True) -> torch.Tensor:
        """[tokens of the continuation, vocabulary]: of what follows the context and each token but the last.

        last: the context is not used again.
        """
        cache = self.cache if last else _with_drafts(copy.deepcopy(self.cache))
        read = [self._last, *continuation[:-1]]
        parts = []
        for first in range(0, len(read), self._piece):
            logits = self._model(torch.tensor([read[first : first + self._piece]]), past_key_values=cache).logits[0]
            parts.append(torch.log_softmax(logits.float(), -1))
            cache.compress()
        return torch.cat(parts)


def _with_drafts(cache: hf.Cache) -> hf.Cache:
    """Several tokens after the first are a draft, whose logits are wanted, and no second half of the prompt."""
    for layer in cache.layers:
        if isinstance(layer, hf.Layer):
            layer.activate_past_recording()
    return cache


@_registry.register_model("mikv-hf")
class MikvLM(_huggingface.HFLM):  # type: ignore[misc, name-defined]
    """HFLM whose generation and log-likelihoods go through mikv.hf.Cache.

    spec   how tokens are held: a Spec's text
    piece  tokens of a continuation that one pass reads
    Other arguments are HFLM's. Log-likelihoods take one context at a time; batch_size counts for generation.
    """

    def __init__(self, pretrained: Any, spec: str = "mikv", piece: int | str = PIECE, **kwargs: Any) -> None:
        self.spec = Spec(str(spec).replace(";", ","))  # lm-eval splits its arguments at commas
        self.piece = int(piece)
        if not 1 <= self.piece <= 64:
            raise UsageError(f"piece={piece}: give a number from 1 to 64")
        self.n_contexts = self.n_short_contexts = self.n_bytes = self.n_elements = 0
        # lm-eval's command passes cuda:0 where --device is left out.
        if str(kwargs.get("device") or "cpu") not in ("cpu", "cuda", "cuda:0"):
            raise UsageError(f"device={kwargs['device']}: mikv.hf.Cache is for models on the CPU; leave --device out")
        kwargs["device"] = "cpu"
        if isinstance(pretrained, str):
            kwargs["attn_implementation"] = hf.ATTENTION
        else:
            pretrained.set_attn_implementation(hf.ATTENTION)
        super().__init__(pretrained, **kwargs)
        if self.backend != "causal":
            raise UsageError("mikv-hf is for decoders; this model is an encoder-decoder")

    # ------------------------------------------------------------ log-likelihoods

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        for context, of_context in self._by_context(requests):
            for index, answer in self._score(context, of_context):
                answers[index] = answer
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                bar.update(1)
        bar.close()
        return answers  # type: ignore[return-value]

    def _by_context(self, requests: list[Request]) -> Iterator[tuple[Tokens, list[tuple[int, Tokens]]]]:
        """Requests of equal contexts together, the longest first, so that time left is never underestimated."""
        groups: dict[tuple[int, ...], list[tuple[int, Tokens]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            context = list(context) or [self.prefix_token_id]
            room = max(1, self.max_length + 1 - len(continuation))
            groups.setdefault(tuple(context[-room:]), []).append((index, list(continuation)))
        for tokens in sorted(groups, key=len, reverse=True):
            yield list(tokens), groups[tokens]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _score(
        self, tokens: Tokens, continuations: list[tuple[int, Tokens]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        context = ReadContext(self.model, self.spec, tokens, self.piece)
        usage = context.cache.memory_usage()
        self.n_contexts += 1
        self.n_short_contexts += len(tokens) <= FEWEST_COMPRESSED
        self.n_bytes += usage.total
        self.n_elements += usage.n_elements
        # Continuations that differ in their last token alone are read once.
        reads: dict[tuple[int, ...], list[tuple[int, Tokens]]] = {}
        for index, continuation in continuations:
            reads.setdefault(tuple(continuation[:-1]), []).append((index, continuation))
        for n, alike in enumerate(reads.values(), 1):
            rows = context.log_probabilities(alike[0][1], last=n == len(reads))
            for index, continuation in alike:
                chosen = torch.tensor(continuation)
                total = float(rows.gather(1, chosen[:, None]).sum())
                yield index, (total, bool((rows.argmax(1) == chosen).all()))

    # ------------------------------------------------------------ generation

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        cache = hf.Cache(self.spec, config=self.model.config)
        out: torch.Tensor = super()._model_generate(context, max_length, stop, past_key_values=cache, **kwargs)
        usage = cache.memory_usage()
        self.n_contexts += int(context.shape[0])
        lengths = kwargs.get("attention_mask", torch.ones_like(context)).sum(1)  # without padding
        self.n_short_contexts += int((lengths < FEWEST_COMPRESSED).sum())
        self.n_bytes += usage.total
        self.n_elements += usage.n_elements
        return out

    def get_model_info(self) -> dict[str, Any]:
        """For the results file: with what was measured."""
        bits = 8 * self.n_bytes / self.n_elements if self.n_elements else 0.0
        return {
            **super().get_model_info(),
            "mikv_spec": str(self.spec),
            "mikv_contexts": self.n_contexts,
            "mikv_contexts_too_short_to_compress": self.n_short_contexts,
            "mikv_bits_per_element": round(bits, 3),
        }
