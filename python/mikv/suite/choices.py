"""lm-eval's model for multiple choice: log-likelihoods of choices after a context that `mikv server` has compressed.

A server computes the logits of a prompt's end while the prompt is still in f16: they say nothing about a cache. Here all
of the context but its last token is read first. That token is then a step of generation: the prompt before it is
compressed, and the logits of the choices come through the compressed cache.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from .._cli import Progress, UsageError, need
from .harness import REMEDY
from .rows import Row, RowLog, digest
from .task import Served, answer_each, ask_once, tokens_of

#: Log probabilities that are asked for; all of them where a choice is not among these.
_N_PROBS, _ALL_PROBS = 512, 1 << 20

Tokens = list[int]


def choice_tokens(server: Served, context: str, choices: list[str], seconds: float) -> tuple[Tokens, list[int]]:
    """The context's tokens, and the one that each choice adds to them."""
    tokens = tokens_of(server, context, seconds)
    added = []
    for choice in choices:
        with_choice = tokens_of(server, context + choice, seconds)
        if with_choice[:-1] != tokens:
            raise UsageError(
                f"the choice {choice!r} is no single token of this model; its log-likelihood is not measured"
            )
        added.append(with_choice[-1])
    return tokens, added


def log_probabilities(
    server: Served, slot: int, tokens: Tokens, wanted: list[int], seconds: float
) -> tuple[list[float], int]:
    """Of the wanted tokens after these, through the compressed cache, and the likeliest token of all."""
    fixed = {"n_predict": 1, "temperature": 0, "id_slot": slot, "seed": 1}
    ask_once(server, "/completion", {**fixed, "prompt": tokens[:-1], "cache_prompt": False}, seconds)
    for n_probs in (_N_PROBS, _ALL_PROBS):
        asked = {**fixed, "prompt": tokens, "cache_prompt": True, "n_probs": n_probs}
        said = ask_once(server, "/completion", asked, seconds)
        n_read = said["timings"]["prompt_n"]
        if n_read != 1:
            raise UsageError(f"the server read {n_read} tokens of a context again, which its cache should have held")
        found = {int(one["id"]): float(one["logprob"]) for one in said["completion_probabilities"][0]["top_logprobs"]}
        if all(token in found for token in wanted):
            return [found[token] for token in wanted], max(found, key=lambda token: found[token])
    raise UsageError("the server gave no log probabilities for a choice; its vocabulary lacks it")


def choices_model(server: Served, log: RowLog, progress: Progress, stop: threading.Event, seconds: float) -> Any:
    """lm-eval's LM that asks for what the rows do not have. A row has all choices of a context."""
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(server.slots):
        slots.put(slot)

    def one(item: tuple[str, list[str]]) -> None:
        context, choices = item
        slot = slots.get()
        try:
            begin = time.monotonic()
            tokens, wanted = choice_tokens(server, context, choices, seconds)
            found, likeliest = log_probabilities(server, slot, tokens, wanted, seconds)
            log.add(
                digest(context), log_probabilities=dict(zip(choices, found, strict=True)),
                greedy=[choice for choice, token in zip(choices, wanted, strict=True) if token == likeliest],
                n_tokens=len(tokens), seconds=round(time.monotonic() - begin, 3), **server.figures(),
            )  # fmt: skip
        finally:
            slots.put(slot)

    class Choices(need("lm_eval.api.model", REMEDY).LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            items: dict[str, tuple[str, list[str]]] = {}
            for context, choice in (request.args for request in requests):
                items.setdefault(digest(context), (context, []))[1].append(choice)
            answer_each(items, log, server.slots, one, stop, progress)
            return [self._said(*request.args) for request in requests]

        def _said(self, context: str, choice: str) -> tuple[float, bool]:
            row: Row = log.rows[digest(context)]
            return row["log_probabilities"][choice], choice in row["greedy"]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise UsageError("this model scores choices; python -m mikv.lm_eval has rolling log-likelihoods")

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise UsageError("this model scores choices; it generates nothing")

    return Choices()
