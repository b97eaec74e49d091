"""What is measured of each cache: divergence, size, time, line retrieval."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .._cli import UsageError, context_for
from .._config import head_dim_of
from . import lines
from .arms import CannotRun, Choice, KvpressArm, SimulatedArm, dynamic
from .panel import Bench, Panel, Record

Progress = Callable[[float, str], None]
#: Tokens of an answer to a question for a line.
_MOST_ANSWERED = 12


@dataclass
class Settings:
    texts: list[str]
    context: int = 1024
    tokens: int = 32
    chunks: int = 3
    timed: int = 5
    lines: int = 20
    prompts: int = 0
    seed: int = 7
    threads: int = 1
    calibration: str | None = None


@dataclass
class Tally:
    """What one cache gave so far."""

    divergences: dict[str, list[float]] = field(default_factory=dict)  #: by text
    same_top: list[bool] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)  #: bytes and elements, by chunk
    parts: dict[str, float] = field(default_factory=dict)  #: bytes, summed over chunks
    cache_s: list[float] = field(default_factory=list)  #: seconds in the cache, by token
    step_s: list[float] = field(default_factory=list)  #: seconds of a whole step, by token
    answers: list[tuple[bool, str]] = field(default_factory=list)
    line_bits: list[float] = field(default_factory=list)

    def all_divergences(self) -> list[float]:
        return [d for values in self.divergences.values() for d in values]

    def bits(self) -> float | None:
        elements = sum(n for _, n in self.sizes)
        return 8 * sum(b for b, _ in self.sizes) / elements if elements else None


def quantile(values: list[float], q: float) -> float:
    """Linear between neighbours, as NumPy's."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def row_of(choice: Choice, tally: Tally) -> dict[str, Any]:
    """A row as JSON has it; what was not measured is null."""
    d = tally.all_divergences()
    simulated = choice.kind == "simulated"
    n = len(tally.sizes)
    return {
        "cache": choice.name,
        "kind": choice.kind,
        "simulated": simulated,
        "bits_per_element": tally.bits(),
        "bytes": sum(b for b, _ in tally.sizes) / n if n else None,
        "bytes_by_part": {name: value / n for name, value in tally.parts.items()} if n else {},
        "kld_mean": statistics.fmean(d) if d else None,
        "kld_median": statistics.median(d) if d else None,
        "kld_p99": quantile(d, 0.99) if d else None,
        "kld_mean_by_text": {text: statistics.fmean(values) for text, values in tally.divergences.items() if values},
        "same_top": sum(tally.same_top) / len(tally.same_top) if tally.same_top else None,
        "n": len(d),
        "cache_s_per_token": statistics.median(tally.cache_s) if tally.cache_s and not simulated else None,
        "step_s_per_token": statistics.median(tally.step_s) if tally.step_s and not simulated else None,
        "lines_right": sum(right for right, _ in tally.answers) if tally.answers else None,
        "lines_asked": len(tally.answers) if tally.answers else None,
        "lines_bits_per_element": statistics.fmean(tally.line_bits) if tally.line_bits else None,
        "answers": [text for _, text in tally.answers],
        "divergences": tally.divergences,
    }


def chunks_of(settings: Settings, tokenizer: Any) -> list[tuple[str, int, list[int]]]:
    """Name of the text, number and tokens of each chunk; a chunk begins with BOS where the tokenizer adds one."""
    needed = settings.context + settings.tokens + settings.timed
    chunks = []
    for path in settings.texts:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--text {path} cannot be read: {error}; give a plain text file in UTF-8") from error
        begin = [tokenizer.bos_token_id] if getattr(tokenizer, "add_bos_token", False) else []
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        each = needed - len(begin)
        if len(tokens) < each * settings.chunks:
            raise UsageError(
                f"--text {path} has {len(tokens)} tokens, but {settings.chunks} chunks of {each} need "
                f"{each * settings.chunks}; use a longer text, fewer --chunks or a smaller --context"
            )
        for i in range(settings.chunks):
            chunks.append((Path(path).stem, i, begin + tokens[i * each : (i + 1) * each]))
    return chunks


class Run:
    """Measures choices on a model. Rows grow as it goes, so that an interrupted run has what was done."""

    def __init__(
        self, bench: Bench, tokenizer: Any, choices: list[Choice], settings: Settings, progress: Progress
    ) -> None:
        self.bench, self.tokenizer, self.settings, self.progress = bench, tokenizer, settings, progress
        self.choices = choices
        self.tallies = {choice.name: Tally() for choice in choices}
        self.not_run: dict[str, str] = {}
        self._calibration: Record | None = None
        config = bench.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = head_dim_of(config)
        self.elements_per_token = config.num_hidden_layers * heads * 2 * head_dim
        for choice in choices:  # those that cannot run are known before anything is measured
            try:
                choice.make(bench.model, settings.threads)
            except CannotRun as error:
                self.not_run[choice.name] = str(error)

    def rows(self) -> list[dict[str, Any]]:
        return [row_of(c, self.tallies[c.name]) for c in self.choices if c.name not in self.not_run]

    # ------------------------------------------------------------ arms that have read a prompt

    def _drop(self, name: str, reason: str) -> None:
        self.not_run[name] = f"{name}: {reason}"

    def _arms(self, record: Record, prompt: list[int], n_more: int) -> list[Any]:
        """Caches that have read the prompt, for n_more tokens after it."""
        max_length = context_for(len(prompt) + n_more)
        arms = []
        for choice in self.choices:
            if choice.name in self.not_run:
                continue
            self.progress(0, choice.name)
            try:
                arm = choice.make(self.bench.model, self.settings.threads, max_length)
                if isinstance(arm, KvpressArm):
                    arm.read_prompt(self.bench.model, prompt)
                else:
                    if isinstance(arm, SimulatedArm) and self._calibration is not None:
                        for layer, (_, q, k, v, _) in sorted(self._calibration.layers.items()):
                            arm.layers[layer].calibrate(q, k, v)
                    record.give(arm)
            except KeyboardInterrupt:
                raise
            except Exception as error:
                if choice.kind == "mikv":
                    raise
                self._drop(choice.name, f"{type(error).__name__}: {error}")
                continue
            arms.append(arm)
        return arms

    def _lost(self, panel: Panel) -> None:
        """Drops the arms that raised during a step."""
        for i, reason in panel.failed.items():
            if i and panel.arms[i].name not in self.not_run:
                if panel.arms[i].kind == "mikv":
                    raise UsageError(f"{panel.arms[i].name}: {reason}")
                self._drop(panel.arms[i].name, reason)

    # ------------------------------------------------------------ divergence, size, time

    def calibrate(self) -> None:
        path = self.settings.calibration
        if path is None:
            return
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--calibration {path} cannot be read: {error}") from error
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.settings.context]
        if len(tokens) < 256:
            raise UsageError(f"--calibration {path} has {len(tokens)} tokens; give at least 256")
        self.progress(0, "calibration")
        self._calibration, _ = self.bench.read(tokens)

    def divergence(self) -> Iterator[None]:
        """One chunk at a time."""
        s = self.settings
        for text, number, chunk in chunks_of(s, self.tokenizer):
            note = f"{text}, chunk {number + 1} of {s.chunks}"
            self.progress(0, f"{note}: prompt")
            prompt = chunk[: s.context]
            record, _ = self.bench.read(prompt)
            self.progress(s.context, note)
            reference = dynamic("DynamicCache", self.bench.config, self.bench.config.num_hidden_layers)
            record.give(reference)
            arms = self._arms(record, prompt, s.tokens + s.timed)
            del record
            panel = self.bench.panel([reference, *arms], s.context)
            for token in chunk[s.context : s.context + s.tokens]:
                log_p = self.bench.forward(panel, torch.full((len(panel.arms), 1), token))
                divergence = (log_p[:1].exp() * (log_p[:1] - log_p)).sum(-1).tolist()
                top = log_p.argmax(-1).tolist()
                for i, arm in enumerate(arms, 1):
                    if i in panel.failed:
                        continue
                    if not math.isfinite(divergence[i]):
                        panel.failed[i] = "its attention gave NaN or infinity"
                        continue
                    tally = self.tallies[arm.name]
                    tally.divergences.setdefault(text, []).append(max(0.0, divergence[i]))  # rounding
                    tally.same_top.append(top[i] == top[0])
                    tally.cache_s.append(panel.seconds[i])
                self.progress(10, note)
            self._lost(panel)
            for arm in arms:
                if arm.name in self.not_run:
                    continue
                size = arm.size()
                tally = self.tallies[arm.name]
                tally.sizes.append((size.total, panel.length * self.elements_per_token))
                for name, value in size.parts.items():
                    tally.parts[name] = tally.parts.get(name, 0.0) + value
            self._time(arms, panel.length, chunk[s.context + s.tokens :], note)
            yield

    def _time(self, arms: list[Any], length: int, tokens: list[int], note: str) -> None:
        """Whole steps, one cache at a time, in turns. Simulations have no speed."""
        timed = [arm for arm in arms if arm.kind != "simulated" and arm.name not in self.not_run]
        panels = [self.bench.panel([arm], length) for arm in timed]
        for token in tokens:
            self.progress(0, f"{note}: seconds per token")
            for arm, panel in zip(timed, panels, strict=True):
                start = time.perf_counter()
                self.bench.forward(panel, torch.tensor([[token]]))
                self.tallies[arm.name].step_s.append(time.perf_counter() - start)
            self.progress(5, note)

    # ------------------------------------------------------------ line retrieval

    def line_retrieval(self) -> Iterator[None]:
        s = self.settings
        for index in range(s.prompts):
            case = lines.make_case(s.lines, s.seed, index)
            prompt = self._prompt_of(case)
            note = f"lines, prompt {index + 1} of {s.prompts}"
            self.progress(0, note)
            record, log_p = self.bench.read(prompt)
            self.progress(len(prompt), note)
            arms = self._arms(record, prompt, _MOST_ANSWERED)
            del record
            panel = self.bench.panel(arms, len(prompt))
            tokens = [[int(log_p.argmax())] for _ in arms]
            for _ in range(_MOST_ANSWERED):
                texts = [self.tokenizer.decode(t) for t in tokens]
                if all(lines.is_complete(text) for text in texts):
                    break
                log_p = self.bench.forward(panel, torch.tensor([[t[-1]] for t in tokens]))
                for row, top in zip(tokens, log_p.argmax(-1).tolist(), strict=True):
                    row.append(top)
                self.progress(10, note)
            for i, reason in panel.failed.items():
                self._drop(arms[i].name, reason)
            for arm, row in zip(arms, tokens, strict=True):
                if arm.name in self.not_run:
                    continue
                answer = self.tokenizer.decode(row)
                tally = self.tallies[arm.name]
                tally.answers.append((lines.is_right(answer, case.expected), answer))
                tally.line_bits.append(8 * arm.size().total / (panel.length * self.elements_per_token))
            yield

    def _prompt_of(self, case: lines.LineCase) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": case.prompt}], tokenize=False, add_generation_prompt=True
            )
        else:
            text = case.prompt + "\n"
        return list(self.tokenizer(text + case.prefix, add_special_tokens=False)["input_ids"])

    def work(self) -> float:
        """All that progress() will be told, in prompt tokens."""
        s = self.settings
        per_chunk = s.context + 10.0 * s.tokens + 5.0 * s.timed
        length = s.lines * 22 + 130
        return per_chunk * s.chunks * len(s.texts) + s.prompts * (length + 60.0)


def equal_bytes(rows: list[dict[str, Any]]) -> None:
    """Adds to each row its divergence over that of mikv's own caches at the same bits, between whose points it reads."""
    ladder = sorted(
        (r["bits_per_element"], r["kld_mean"])
        for r in rows
        if re.match(r"mikv(-max|-hq)?(:|$)", r["cache"]) and r["kld_mean"] and r["bits_per_element"]
    )
    for row in rows:
        row["times_mikv_at_equal_bits"] = None
        bits, kld = row["bits_per_element"], row["kld_mean"]
        if row["kind"] == "mikv" or not bits or not kld:
            continue
        for (b0, d0), (b1, d1) in zip(ladder, ladder[1:], strict=False):
            if b0 <= bits <= b1 and b1 > b0:
                share = (bits - b0) / (b1 - b0)
                row["times_mikv_at_equal_bits"] = kld / math.exp((1 - share) * math.log(d0) + share * math.log(d1))
