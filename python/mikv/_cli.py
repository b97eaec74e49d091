"""What the programs of this package share: models, one-line errors, progress with the time left."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

#: Exit codes: the user's mistake; interrupted.
USAGE, INTERRUPTED = 2, 130


class UsageError(Exception):
    """What the user can mend. The message is one line that names cause and remedy."""


def run(program: str, main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Runs main(); mistakes become one line on stderr and exit code 2."""
    try:
        return main(arguments)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("MIKV_TRACEBACK"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UsageError):
            text += " (MIKV_TRACEBACK=1 shows where)"
        print(f"{program}: {text}", file=sys.stderr)
        return USAGE


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose epilog is printed as it is written."""

    def __init__(self, module: str, description: str, epilog: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=_program_name(module), description=description, epilog=epilog, formatter_class=form)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help has an example")


def _program_name(module: str) -> str:
    """How the user called this program: as a command of mikv, or as a module."""
    return sys.argv[0] if sys.argv[0].startswith("mikv ") else f"python -m {module}"


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: whole numbers from `least` on."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def split_specs(text: str) -> list[str]:
    """Splits at commas, but not at those before a spec's keys: "mikv:keep=0.2,hi=f16,h2o" is two. As split_spec_list()."""
    specs: list[str] = []
    for part in filter(None, (x.strip() for x in text.split(","))):
        if specs and "=" in part.partition(":")[0]:
            specs[-1] += ("," if ":" in specs[-1] else ":") + part
        else:
            specs.append(part)
    return specs


def check_folder_of(output: Path) -> None:
    """Refuses a file that cannot be written, before the work that it is to hold."""
    if not output.absolute().parent.is_dir():
        raise UsageError(f"cannot write {output}: there is no folder {output.parent}; create it first")
    if not os.access(output.absolute().parent, os.W_OK):
        raise UsageError(f"cannot write {output}: the folder {output.parent} is read-only; choose another")


def context_for(n_tokens: int) -> int:
    """Length of a cache for so many tokens, as `mikv eval` makes it: compression looks that far ahead."""
    return -(-n_tokens // 256) * 256


def need(module: str, remedy: str) -> Any:
    """An imported module, or a UsageError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"cannot import {error.name or module} ({error}); {remedy}") from error


def model_place(model: str, gguf: str | None) -> tuple[str, dict[str, str]]:
    """What from_pretrained() takes: a directory or a name, and the GGUF file in it. `model` may be the file itself."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and gguf is None:
        model, gguf = str(path.parent), path.name
        path = path.parent
    elif path.exists():
        model = str(path)
    if gguf is None:
        return model, {}
    if path.is_dir() and not (path / gguf).is_file():
        found = ", ".join(sorted(p.name for p in path.glob("*.gguf"))) or "none"
        raise UsageError(f"{path} has no file {gguf}; its GGUF files: {found}")
    return model, {"gguf_file": gguf}


def model_name(model: str, gguf: str | None) -> str:
    """A short name for results: the file's, or the last part of a directory, or the name as it is."""
    if gguf or model.endswith(".gguf"):
        return Path(gguf or model).stem
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def load_tokenizer(model: str, gguf: str | None) -> Any:
    from transformers import AutoTokenizer

    place, file = model_place(model, gguf)
    return AutoTokenizer.from_pretrained(place, **file)


def load_model(model: str, gguf: str | None, dtype: str, attention: str) -> Any:
    """A model for inference on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place, file = model_place(model, gguf)
    kind = "auto" if dtype == "auto" and not file else getattr(torch, "float32" if dtype == "auto" else dtype, None)
    if kind is None:
        raise UsageError(f"--dtype {dtype} is not known; give float32, bfloat16, float16 or auto")
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, **file, dtype=kind, attn_implementation=attention)
    return loaded.eval()


class Progress:
    """Lines like `mikv 3/15, 41 s each, 8 min left` on stderr; on a terminal, one line that changes."""

    def __init__(self, label: str, n: int, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.label, self.n, self.quiet, self._clock = label, n, quiet, clock
        self.done, self._begin, self._done_before, self._shown = 0, clock(), 0, 0.0

    def skip(self, n: int) -> None:
        """n are done already, and say nothing about the time that the others take."""
        self.done += n
        self._done_before += n

    def text(self) -> str:
        done = self.done - self._done_before
        if not done:
            return f"{self.label} {self.done}/{self.n}"
        each = (self._clock() - self._begin) / done
        return f"{self.label} {self.done}/{self.n}, {seconds(each)} each, {seconds(each * (self.n - self.done))} left"

    def step(self) -> None:
        self.done += 1
        if self.quiet:
            return
        if sys.stderr.isatty():
            print(f"\r\033[K{self.text()}", end="" if self.done < self.n else "\n", file=sys.stderr, flush=True)
        elif self.done == self.n or self._clock() - self._shown > 10:
            self._shown = self._clock()
            print(self.text(), file=sys.stderr, flush=True)


def seconds(s: float) -> str:
    """A duration for people: 0.4 s, 41 s, 8 min, 2.1 h."""
    if s < 10:
        return f"{s:.1f} s"
    if s < 100:
        return f"{s:.0f} s"
    return f"{s / 60:.0f} min" if s < 5400 else f"{s / 3600:.1f} h"
