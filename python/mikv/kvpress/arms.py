"""One arm of a comparison: a press or a spec over a data set, context after context, in kvpress's folder layout."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from .._cli import Progress, UsageError
from .._files import write_whole
from .caches import TieredPress, f16_bytes, press_bytes

#: Records what is done of an arm that is not finished, a line per context.
_UNFINISHED = "unfinished"
#: Beside kvpress's three files: what they have no place for.
_MEASURED = "measured.json"


@dataclass
class Arm:
    """What to run. ratio: tokens that a press drops; None: as many as give the bytes that `equal_to` measured."""

    press_name: str
    spec: str | None = None
    ratio: float | None = 0.0

    @property
    def label(self) -> str:
        """The name in folders: mikv, or mikv-h2o-keep-0.2 for another spec."""
        if self.spec is None or self.spec == "mikv":
            return self.press_name
        text = self.spec.replace(":", "-").replace(",", "-").replace("=", "-")
        return text if text.startswith("mikv") else f"mikv-{text}"


@dataclass
class Record:
    """A context: its answers, bytes after it was read, seconds."""

    context: str  #: Runner.id_of()
    answers: list[str]
    ratio: float  #: 1 - n_bytes / n_f16_bytes, or what it would be without what is masked
    n_bytes: int
    n_masked_bytes: int
    n_f16_bytes: int
    seconds: float


@dataclass
class Result:
    arm: Arm
    folder: str
    metrics: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return sum(r.ratio for r in self.records) / max(1, len(self.records))

    def summary(self) -> dict[str, Any]:
        n = max(1, len(self.records))

        def mean(name: str) -> float:
            return float(sum(getattr(r, name) for r in self.records)) / n

        return {
            "press_name": self.arm.label,
            "spec": self.arm.spec,
            "compression_ratio": round(self.ratio, 4),
            "n_contexts": len(self.records),
            "bytes_per_context": round(mean("n_bytes")),
            "masked_bytes_per_context": round(mean("n_masked_bytes")),
            "f16_bytes_per_context": round(mean("n_f16_bytes")),
            "seconds_per_context": round(mean("seconds"), 2),
            "metrics": self.metrics,
            "folder": self.folder,
        }


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(arms: list[Arm], registry: dict[str, Any]) -> None:
    """Refuses presses that kvpress does not have, and those that this program cannot measure."""
    for arm in arms:
        if arm.spec is None and arm.press_name not in registry:
            raise UsageError(
                f"press {arm.press_name} is not known; give some of {', '.join(['mikv', *sorted(registry)])}"
            )
        if arm.press_name.startswith("decoding_"):
            raise UsageError(f"{arm.press_name} compresses while it generates; kvpress's own evaluate.py runs it")


class Runner:
    """Runs arms on one model. `evaluate` is kvpress's evaluate.py, `config` makes its EvaluationConfig of an arm."""

    def __init__(self, evaluate: Any, pipeline: Any, settings: dict[str, Any], limit: int | None, quiet: bool) -> None:
        self.evaluate, self.pipeline, self.settings, self.limit, self.quiet = evaluate, pipeline, settings, limit, quiet
        self.output = Path(settings["output_dir"])
        self._ratios: dict[str, float] = {}  #: by context: what the first arm in tiers measured

    def run(self, arm: Arm) -> Result:
        """An arm from the beginning, or from where it was interrupted. One that is finished is read."""
        runner = self._runner(arm)
        key = self._key(arm)
        groups = self._load(runner)
        ids = [self.id_of(arm, context, rows) for context, rows in groups]
        records: dict[str, Record] = {}
        for result in self._finished(arm, key):
            if [r.context for r in result.records] == ids:
                self._learn(arm, groups, result.records)
                return result
            records |= {r.context: r for r in result.records}  # of another --limit
        place = self.output / _UNFINISHED / f"{arm.label}-{key}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        records |= {r.context: r for r in _read_records(place)}
        progress = Progress(arm.label, len(groups), self.quiet)
        progress.skip(sum(id in records for id in ids))
        with place.open("a") as file:
            for id, (context, rows) in zip(ids, groups, strict=True):
                if id not in records:
                    record = self._read_context(runner, arm, id, context, rows)
                    records[record.context] = record
                    file.write(json.dumps(vars(record)) + "\n")
                    file.flush()
                    progress.step()
        result = self._write(runner, arm, key, groups, [records[id] for id in ids])
        place.unlink()
        self._learn(arm, groups, result.records)
        return result

    # ------------------------------------------------------------ kvpress's objects

    def _runner(self, arm: Arm) -> Any:
        if arm.spec is not None:
            self.evaluate.PRESS_REGISTRY[arm.label] = TieredPress(arm.spec)
        config = self.evaluate.EvaluationConfig(
            **self.settings, press_name=arm.label, compression_ratio=arm.ratio or 0.0
        )
        runner = self.evaluate.EvaluationRunner(config)
        runner.pipeline = self.pipeline
        runner._setup_press()
        return runner

    def _load(self, runner: Any) -> list[tuple[str, Any]]:
        try:
            runner._load_and_prepare_dataset()
        except (FileNotFoundError, ConnectionError) as error:
            raise UsageError(
                f"data set {self.settings['dataset']} is not there ({error}); give --dataset_path a local one, for "
                "example of python -m mikv.ruler"
            ) from error
        if self.limit is not None:
            by_task = runner.df.groupby("task") if "task" in runner.df else runner.df.groupby(lambda _: 0)
            runner.df = by_task.head(self.limit)
        return list(runner.df.groupby("context"))

    def _key(self, arm: Arm) -> str:
        """Equal for runs that give the same answer to a question. --limit and --fraction only say which are asked."""
        what = {**self.settings, "arm": [arm.press_name, arm.spec, arm.ratio], "output_dir": "", "fraction": 1}
        return hash_of(json.dumps(what, sort_keys=True, default=str))

    def id_of(self, arm: Arm, context: str, rows: Any) -> str:
        """A context and its questions; and the share to drop, where mikv's measurement says it."""
        what = [context, rows["question"].to_list(), self._ratio_for(arm, context) if arm.ratio is None else None]
        return hash_of(json.dumps(what))

    # ------------------------------------------------------------ a context

    def _read_context(self, runner: Any, arm: Arm, id: str, context: str, rows: Any) -> Record:
        press, model = runner.press, self.pipeline.model
        if arm.ratio is None:
            press.compression_ratio = self._ratio_for(arm, context)
        eager = type(press).__name__ == "ObservedAttentionPress"
        model.set_attn_implementation("mikv" if arm.spec else "eager" if eager else "sdpa")
        cache = press.new_cache(model) if arm.spec else DynamicCache()
        n_tokens = self._n_tokens(context, runner.config.max_context_length)
        begin = time.monotonic()
        with torch.inference_mode():
            output = self.pipeline(
                context,
                questions=rows["question"].to_list(),
                answer_prefix=rows["answer_prefix"].iloc[0],
                press=press,
                cache=cache,
                max_new_tokens=int(runner.config.max_new_tokens or rows["max_new_tokens"].iloc[0]),
                max_context_length=runner.config.max_context_length,
            )
        took = time.monotonic() - begin
        n_f16_bytes = f16_bytes(model.config, n_tokens)
        n_bytes, n_masked = (press.n_bytes, 0) if arm.spec else press_bytes(model, cache)
        ratio = 1 - (n_bytes - n_masked) / n_f16_bytes
        return Record(id, output["answers"], ratio, n_bytes, n_masked, n_f16_bytes, round(took, 3))

    def _n_tokens(self, context: str, most: int | None) -> int:
        most = most or min(self.pipeline.tokenizer.model_max_length, int(1e10))
        return int(self.pipeline.preprocess(context, [""], "", most)["context_ids"].shape[1])

    def _learn(self, arm: Arm, groups: list[tuple[str, Any]], records: list[Record]) -> None:
        if arm.spec is not None and not self._ratios:
            self._ratios = {context: record.ratio for (context, _), record in zip(groups, records, strict=True)}

    def _ratio_for(self, arm: Arm, context: str) -> float:
        ratio = self._ratios.get(context)
        if ratio is None:
            raise UsageError(
                f"{arm.label} is to have the bytes of mikv, which has not run; put mikv before it in --press_name"
            )
        return max(0.0, ratio)

    # ------------------------------------------------------------ results

    def _write(self, runner: Any, arm: Arm, key: str, groups: Any, records: list[Record]) -> Result:
        runner.df["predicted_answer"] = None
        for (_, rows), record in zip(groups, records, strict=True):
            runner.df.loc[rows.index, "predicted_answer"] = record.answers
            runner.df.loc[rows.index, "compression_ratio"] = record.ratio
        result = Result(arm, "", {}, records)
        runner.config.compression_ratio = round(result.ratio, 4)
        folder = runner.config.get_results_dir(runner._setup_directories())
        result.folder = str(folder)
        runner._save_results(folder / "predictions.csv")
        runner._calculate_and_save_metrics(folder / "metrics.json")
        runner.config.save_config(folder / "config.yaml")
        result.metrics = json.loads((folder / "metrics.json").read_text())
        measured = {"key": key, **result.summary(), "records": [vars(r) for r in result.records]}
        write_whole(folder / _MEASURED, json.dumps(measured, indent=1))
        return result

    def _finished(self, arm: Arm, key: str) -> Iterator[Result]:
        for file in sorted(self.output.glob(f"**/{_MEASURED}")):
            measured = json.loads(file.read_text())
            if measured["key"] == key:
                yield Result(arm, str(file.parent), measured["metrics"], [Record(**r) for r in measured["records"]])


def _read_records(file: Path) -> Iterator[Record]:
    """What an interrupted run left. A line that was cut is left out."""
    if not file.exists():
        return
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    write_whole(file, "".join(whole))
    for line in whole:
        yield Record(**json.loads(line))
