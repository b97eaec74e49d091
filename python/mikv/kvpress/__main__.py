"""python -m mikv.kvpress: kvpress's pipeline and scorers, with caches in tiers beside kvpress's presses."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._cli import (
    INTERRUPTED,
    Parser,
    UsageError,
    load_model,
    load_tokenizer,
    model_name,
    need,
    run,
    seconds,
)
from .._files import write_whole
from . import evaluation

if TYPE_CHECKING:
    from .arms import Arm, Result

_EPILOG = """\
example, four caches at equal bytes on rows that python -m mikv.ruler made:
  python -m mikv.ruler   --model ~/models --gguf qwen.gguf --length 4096 --rows 5 --output ruler
  python -m mikv.kvpress --model ~/models --gguf qwen.gguf --dataset ruler --dataset_path ruler --data_dir 4096 \\
      --press_name no_press,mikv,snapkv,expected_attention --compression_ratio equal --output_dir results

Each press gets a folder with predictions.csv, metrics.json and config.yaml, as kvpress's evaluate.py writes them, and
measured.json. Interrupt with Ctrl-C: the same command resumes from there. docs/python-eval.md says more.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "mikv.kvpress",
        "Runs kvpress's pipeline and scorers with a mikv cache, and with kvpress's presses beside it.",
        _EPILOG,
    )

    def add(name: str, **more: Any) -> None:
        names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        parser.add_argument(*names, **more)

    add("model", required=True, metavar="DIR_OR_NAME", help="as from_pretrained() takes it, or a GGUF file")
    add("gguf", metavar="FILE", help="the GGUF file in that directory")
    add("dtype", default="auto", help="float32, bfloat16, float16 or auto (default; float32 of a GGUF file)")
    add("dataset", default="ruler", help="one of kvpress's data sets (default: ruler)")
    add("dataset_path", metavar="DIR", help="a local copy of it; default: fetched by its name")
    add("data_dir", help="its part, for example 4096")
    add("press_name", default="mikv", help="mikv, no_press, snapkv, expected_attention ..., several with commas")
    add("spec", action="append", metavar="SPEC", help="of mikv (default: mikv); several: an arm for each")
    add("compression_ratio", default="equal", metavar="X",
        help="tokens that the other presses drop; equal (default): as many as give mikv's bytes of the same context")  # fmt: skip
    add("fraction", type=float, default=1.0, help="of the data set (default: 1)")
    add("limit", type=int, metavar="N", help="only the first N rows of each task")
    add("max_new_tokens", type=int, help="default: the data set's")
    add("max_context_length", type=int, help="default: the model's")
    add("query_aware", action="store_true", help="put the question into the context, before compression")
    add("seed", type=int, default=42)
    add("threads", type=int, help="default: torch's")
    add("output_dir", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--kvpress-evaluation", type=Path, metavar="DIR",
                        help="evaluation/ of a kvpress checkout; default: what scripts/setup_kvpress.sh made")  # fmt: skip
    add("json", action="store_true", help="print the summary as JSON")
    add("quiet", action="store_true", help="no progress")
    return parser


def _arms(options: argparse.Namespace) -> list[Arm]:
    from ..spec import Spec
    from .arms import Arm

    ratio: float | None = None
    if options.compression_ratio != "equal":
        try:
            ratio = float(options.compression_ratio)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio < 1:
            raise UsageError(
                f'--compression_ratio {options.compression_ratio}: give a number from 0 to below 1, or "equal"'
            )
    arms = []
    for name in filter(None, options.press_name.split(",")):
        if name == "mikv":
            arms += [Arm(name, str(Spec(spec))) for spec in options.spec or ["mikv"]]
        else:
            arms.append(Arm(name, ratio=0.0 if name == "no_press" else ratio))
    if not arms:
        raise UsageError("--press_name is empty; give mikv, no_press, snapkv ...")
    if options.spec and not any(arm.spec for arm in arms):
        raise UsageError("--spec is for mikv, which --press_name does not have; add it")
    first_tiered = next((i for i, arm in enumerate(arms) if arm.spec), len(arms))
    for arm in arms[:first_tiered]:
        if arm.ratio is None:
            raise UsageError(
                f"{arm.press_name} is to have the bytes of mikv: put mikv before it in --press_name, or give "
                "--compression_ratio"
            )
    return arms


def _pipeline(options: argparse.Namespace) -> Any:
    import torch

    kvpress = need("kvpress", "run scripts/setup_kvpress.sh")
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model, options.gguf)
    model = load_model(options.model, options.gguf, options.dtype, "sdpa")
    # The pipeline stops at this token, which a GGUF file names in its tokenizer alone.
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return kvpress.KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer, device="cpu")


def _table(results: list[Result]) -> str:
    tasks = sorted({task for result in results for task in _scores(result.metrics)})
    head = ["press", "MiB", "ratio", *tasks, "mean", "time"]
    rows = [head]
    for result in results:
        summary, scores = result.summary(), _scores(result.metrics)
        held = summary["bytes_per_context"] - summary["masked_bytes_per_context"]
        mean = sum(scores.values()) / len(scores) if scores else float("nan")
        mark = "*" if summary["masked_bytes_per_context"] else ""
        rows.append([
            result.arm.label, f"{held / 2**20:.2f}{mark}", f"{summary['compression_ratio']:.3f}",
            *(f"{scores[task]:.1f}" if task in scores else "-" for task in tasks), f"{mean:.1f}",
            seconds(summary["seconds_per_context"]),
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    if any("*" in row[1] for row in rows):
        lines.append("* as if masked tokens were dropped; this press keeps them in memory")
    return "\n".join(lines)


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Scores by task, of the metrics of RULER and of data sets that have one number per task."""
    scores = {}
    for task, value in metrics.items():
        value = next(iter(value.values()), None) if isinstance(value, dict) else value
        if isinstance(value, (int, float)):
            scores[task] = float(value)
    return scores


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    arms = _arms(options)
    evaluate = evaluation.load(options.kvpress_evaluation)
    from .arms import Runner, check

    check(arms, evaluate.PRESS_REGISTRY)
    if options.dataset not in evaluate.DATASET_REGISTRY:
        raise UsageError(
            f"data set {options.dataset} is not known; kvpress has {', '.join(sorted(evaluate.DATASET_REGISTRY))}"
        )
    if options.dataset_path is not None:
        if not Path(options.dataset_path).is_dir():
            raise UsageError(
                f"{options.dataset_path} is no directory; python -m mikv.ruler makes one for --dataset ruler"
            )
        evaluate.DATASET_REGISTRY[options.dataset] = str(Path(options.dataset_path).resolve())
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("transformers", "kvpress", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    need("datasets", "run scripts/setup_kvpress.sh").disable_progress_bars()
    settings = {
        "dataset": options.dataset, "data_dir": options.data_dir, "model": model_name(options.model, options.gguf),
        "device": "cpu", "fraction": options.fraction, "max_new_tokens": options.max_new_tokens,
        "max_context_length": options.max_context_length, "query_aware": options.query_aware, "seed": options.seed,
        "output_dir": str(options.output_dir), "log_level": "ERROR", "model_kwargs": {"dtype": options.dtype},
    }  # fmt: skip
    runner = Runner(evaluate, _pipeline(options), settings, options.limit, options.quiet)
    results: list[Result] = []
    try:
        for arm in arms:
            results.append(runner.run(arm))
    except KeyboardInterrupt:
        kept = f"{options.output_dir} keeps what is done, the same command resumes"
        print(f"\nmikv.kvpress: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if results:
            _report(options, results)
    return 0


def _report(options: argparse.Namespace, results: list[Result]) -> None:
    summary = json.dumps([result.summary() for result in results], indent=1)
    write_whole(options.output_dir / "summary.json", summary + "\n")
    print(summary if options.json else _table(results), flush=True)


if __name__ == "__main__":
    sys.exit(run("mikv.kvpress", main, sys.argv[1:]))
