"""Tasks that are commands of their own: `mikv eval lines` and `mikv eval kld`, and the files that these write.

A command keeps its rows beside its output, and resumes there.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._cli import UsageError
from .rows import Row, read_rows
from .server import end_with_parent


@dataclass(frozen=True)
class EvalCommand:
    name: str
    settings: dict[str, Any]  #: its options without dashes; the meta data of its output has them too
    item: Callable[[Row], Row]  #: a row of its file as one of the suite's

    def run(
        self, command: str, model: str, description: str, arms: list[str], threads: int | None, output: Path
    ) -> None:
        """Runs it, unless its output is there. Its progress goes to stderr."""
        if self._is_complete(output, {**self.settings, "model": model, "model_description": description}, arms):
            return
        options = [text for pair in self._options().items() for text in pair]
        asked = [command, "eval", self.name, "-m", model, "--kv", ",".join(arms), *options, "-o", str(output)]
        process = subprocess.Popen(
            [*asked, *(["-t", str(threads)] if threads else [])],
            stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # once: a terminal's own does not reach another session
            process.wait()
            raise
        if code == 130 or code == -signal.SIGINT:
            raise KeyboardInterrupt
        if code != 0:
            raise UsageError(f"mikv eval {self.name} has failed (above); mend that, and the same command resumes")

    def _options(self) -> dict[str, str]:
        return {f"--{name}": str(value) for name, value in self.settings.items()}

    def read(self, output: Path, model: str, description: str) -> dict[str, dict[str, Row]]:
        """The rows of each arm, by item, of a run that may be unfinished; none if it is of another model or settings."""
        file = output.with_suffix(".rows.jsonl")
        arms: dict[str, dict[str, Row]] = {}
        if not file.exists():
            return arms
        head, *rows = read_rows(file, (), whole=False) or [{}]
        if not self._is_own(head.get("rows_of"), model, description):
            return arms
        for line, row in enumerate(rows, 2):
            if "part" not in row:
                continue
            try:
                arms.setdefault(row["kv"], {})[str(row["part"])] = self.item(row)
            except (KeyError, TypeError) as error:
                raise UsageError(f"{file}:{line}: the field {error} is missing; remove the line") from error
        return arms

    def _is_own(self, identity: Any, model: str, description: str) -> bool:
        """Whether the head of rows (cli/row_log.cpp) is of this model and these settings. Settings are its command line."""
        try:
            words = shlex.split(identity["command_line"])
            same_model = identity["model"].startswith(f"{description}, ")  # a path may have got another file
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        given, wanted = dict(zip(words[3::2], words[4::2], strict=False)), {"-m": model, **self._options()}
        return same_model and words[1:3] == ["eval", self.name] and wanted.items() <= given.items()

    @staticmethod
    def _is_complete(output: Path, wanted: dict[str, Any], arms: list[str]) -> bool:
        """Whether the JSON is there, whole and of these arms and settings."""
        try:
            said = json.loads(output.read_text())
            meta, measured = said["meta"], [row["kv"] for row in said["rows"]]
            return not meta.get("interrupted") and measured == arms and all(meta[k] == v for k, v in wanted.items())
        except (OSError, ValueError, KeyError, TypeError):
            return False


def lines(n_prompts: int, n_lines: int, seed: int) -> EvalCommand:
    """LongEval's line retrieval. An item is a prompt."""

    def item(row: Row) -> Row:
        return {
            "correct": bool(row["correct"]), "bits_per_element": row["bits_per_element"], "kv_bytes": row["kv_bytes"],
            "kv_peak_bytes": row["kv_bytes"], "seconds": row["prefill_s"] + row["timed_s"],
        }  # fmt: skip

    return EvalCommand("lines", {"prompts": n_prompts, "lines": n_lines, "seed": seed}, item)


def kld(text: Path, n_chunks: int, n_context: int, n_tokens: int) -> EvalCommand:
    """KL divergence. An item is a chunk of the text; it is right by the share of tokens whose likeliest is that of `full`."""

    def item(row: Row) -> Row:
        divergences = row["divergences"]
        return {
            "correct": row["n_same_top"] / len(divergences), "kld": sum(divergences) / len(divergences),
            "bits_per_element": row["bits_per_element"],
        }  # fmt: skip

    settings = {"text": str(text), "chunks": n_chunks, "context": n_context, "tokens": n_tokens}
    return EvalCommand("kld", settings, item)
