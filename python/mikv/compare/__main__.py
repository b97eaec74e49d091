"""The command: python -m mikv.compare."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from .. import _page
from .._cli import INTERRUPTED, Parser, UsageError, at_least, check_folder_of, load_model, load_tokenizer, run

_EXAMPLE = """\
example:
  python -m mikv.compare --model models --gguf smollm2-135m.gguf --text prose.txt code.txt \\
    --context 2048 --tokens 32 --chunks 3 --prompts 10 \\
    --kv full,h2o,mikv-paper,mikv-max,mikv --peers dynamic,quanto-int4,sim:kivi-2,sim:kvarn-2 -o out.json --plot out.svg

peers that are packages: dynamic, quanto-int4, quanto-int2, turboquantcpu, kvpress:SnapKV, kvpress:ExpectedAttention
simulations: sim:METHOD-BITS or sim:METHOD-kBITSvBITS, with METHOD kivi, turboquant, kvarn, kitty, oscar or block-gtq
and options behind a colon, as in sim:kivi-2:group=64,residual=64
"""


class _Progress:
    """Share done and time left on stderr, if that is a terminal."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.start = total, 0.0, time.monotonic()
        self.shown = sys.stderr.isatty()

    def __call__(self, amount: float, note: str) -> None:
        self.done += amount
        if not self.shown:
            return
        share = min(0.999, self.done / self.total) if self.total else 0.0
        left = ""
        if share > 0.02:
            seconds = (time.monotonic() - self.start) * (1 - share) / share
            left = f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"
        print(f"\r\033[K{100 * share:3.0f} %{left}  {note}"[:110], end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    p = Parser(
        "mikv.compare",
        "Caches side by side on one model: KL divergence to DynamicCache, measured bytes, time, line retrieval.",
        _EXAMPLE,
    )
    p.add_argument(
        "--model", required=True, metavar="DIR", help="folder (or name) of the model, as for from_pretrained()"
    )
    p.add_argument("--gguf", metavar="FILE", help="a GGUF file in that folder")
    p.add_argument(
        "--kv", default="full,h2o,snapkv,mikv-paper,mikv", metavar="SPECS", help="mikv's caches (%(default)s)"
    )
    p.add_argument("--peers", default="dynamic", metavar="NAMES", help="others, see below (%(default)s)")
    p.add_argument("--text", nargs="+", default=[], metavar="FILE", help="plain texts for KL divergence")
    p.add_argument("--context", type=at_least(2), default=1024, metavar="N", help="tokens of a prompt (%(default)s)")
    p.add_argument("--tokens", type=at_least(1), default=32, metavar="N", help="tokens fed one by one (%(default)s)")
    p.add_argument("--chunks", type=at_least(1), default=3, metavar="N", help="chunks of each text (%(default)s)")
    p.add_argument(
        "--timed", type=at_least(0), default=3, metavar="N", help="timed tokens per chunk and cache (%(default)s)"
    )
    p.add_argument(
        "--prompts", type=at_least(0), default=0, metavar="N", help="prompts of line retrieval (%(default)s)"
    )
    p.add_argument("--lines", type=at_least(1), default=20, metavar="N", help="lines of such a prompt (%(default)s)")
    p.add_argument("--seed", type=at_least(0), default=7, metavar="N", help="of the lines (%(default)s)")
    p.add_argument(
        "--calibration", metavar="FILE", help="text on which simulations fit; without it: on each prompt itself"
    )
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and DynamicCache")
    p.add_argument("--threads", type=at_least(1), metavar="N", help="threads of torch and mikv (all CPUs)")
    p.add_argument("-o", "--output", metavar="OUT.json", help="write settings and rows as JSON, after each chunk")
    p.add_argument("--plot", metavar="OUT.svg", help="draw divergence against bits")
    return p


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return load_model(args.model, args.gguf, args.dtype, "sdpa"), load_tokenizer(args.model, args.gguf)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{args.model} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _check(args: argparse.Namespace) -> None:
    if not args.text and not args.prompts:
        raise UsageError(
            "nothing to measure; give texts with --text FILE, or prompts of line retrieval with --prompts N"
        )
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed; pip install './python[compare]'")
    for path in (args.output, args.plot):
        if path:
            check_folder_of(Path(path))


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    _check(args)
    if args.gguf:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's own progress bar
    try:
        import torch
        import transformers

        from .. import library_version
        from . import report
        from .arms import parse_choices
        from .measure import Run, Settings, equal_bytes
        from .panel import Bench
    except ImportError as error:
        raise UsageError(f"{error}; pip install './python[hf,gguf,compare]'") from error
    try:
        choices = parse_choices(args.kv, args.peers)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        texts=args.text,
        context=args.context,
        tokens=args.tokens,
        chunks=args.chunks,
        timed=args.timed,
        lines=args.lines,
        prompts=args.prompts,
        seed=args.seed,
        threads=torch.get_num_threads(),
        calibration=args.calibration,
    )
    model, tokenizer = _load(args)
    meta = {
        "command": _page.command("mikv.compare", argv),
        "model": args.gguf or args.model,
        "dtype": args.dtype,
        **{
            key: getattr(settings, key)
            for key in ("context", "tokens", "chunks", "timed", "lines", "prompts", "seed", "threads")
        },
        "texts": [Path(path).name for path in args.text],
        "fitted_on": args.calibration or "each prompt itself",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "mikv": library_version(),
        "processor": platform.processor() or platform.machine(),
        "interrupted": False,
    }
    progress = _Progress(1.0)
    measured = None

    def save() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = measured.rows() if measured else []
        equal_bytes(rows)
        if args.output:
            report.write_json(args.output, meta, rows, measured.not_run if measured else {})
        return rows

    try:
        measured = Run(Bench(model), tokenizer, choices, settings, progress)
        progress.total = measured.work()
        with torch.no_grad():
            measured.calibrate()
            if settings.texts:
                for _ in measured.divergence():
                    save()
            for _ in measured.line_retrieval():
                save()
    except KeyboardInterrupt:
        meta["interrupted"] = True
    finally:
        progress.clear()
    rows = save()
    print(report.table(rows))
    for reason in (measured.not_run if measured else {}).values():
        print(f"not measured: {reason}")
    if any(row["simulated"] for row in rows):
        print("simulated: values as the method would read them back, bits counted; no speed (docs/python-compare.md)")
    if args.plot and any(row["kld_mean"] for row in rows):
        report.plot(
            args.plot, f"{meta['model']}, {args.context} + {args.tokens} tokens, {', '.join(meta['texts'])}", rows
        )
    if meta["interrupted"]:
        print("mikv.compare: interrupted; the rows above are of what was done", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(run("mikv.compare", main, sys.argv[1:]))
