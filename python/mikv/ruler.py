"""Rows of RULER's synthetic tasks as kvpress reads them, made by the generators of the installed lm-eval.

    python -m mikv.ruler --model DIR --gguf FILE --length 4096 --rows 5 --output ruler
    python -m mikv.kvpress --model DIR --gguf FILE --dataset ruler --dataset_path ruler --data_dir 4096 ...

Nothing is downloaded. The tasks whose text is an essay or a question of SQuAD or HotpotQA are therefore missing.
Columns: context, question, answer_prefix, answer (a list), task, max_new_tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._cli import Parser, UsageError, load_tokenizer, need, run
from ._files import write_whole

_REMEDY = "install it: pip install lm_eval==0.4.13 wonderwords nltk scipy (scripts/setup_kvpress.sh does)"

Rows = list[dict[str, Any]]

#: Where the question begins in a generated prompt, and the most tokens of an answer, by the first word of the task.
_QUESTIONS = {
    "niah": ("What is the special magic", 128),
    "vt": ("Question: Find all variables", 30),
    "cwe": ("Question: What are the 10 most common words", 120),
    "fwe": ("Question: Do not provide any explanation.", 50),
}


def _niah(haystack: str, needle_key: str, needle_value: str) -> Callable[[Any, int, int], Rows]:
    def make(tokenizer: Any, length: int, rows: int) -> Rows:
        prepare, utils = _generator("prepare_niah"), _generator("niah_utils")
        made: Rows = prepare.generate_samples(
            prepare.get_haystack(type_haystack=haystack),
            TOKENIZER=tokenizer,
            max_seq_length=length,
            template=utils.TEMPLATE,
            type_haystack=haystack,
            type_needle_k=needle_key,
            type_needle_v=needle_value,
            num_samples=rows,
        )
        return made

    return make


def _vt(tokenizer: Any, length: int, rows: int) -> Rows:
    make = _generator("vt_utils").sys_vartrack_w_noise_random
    example = make(tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5)[0]
    made: Rows = make(tokenizer=tokenizer, num_samples=rows, max_seq_length=length, icl_example=example)
    return made


def _cwe(tokenizer: Any, length: int, rows: int) -> Rows:
    cwe = _generator("cwe_utils")
    cwe.RNG.seed(random.getrandbits(32))  # a generator of its own, made at import
    made = cwe.sys_word_pair_random(num_samples=rows, max_seq_length=length, tokenizer=tokenizer)
    # RULER shows one solved example first; the generator leaves room for it and gives it apart.
    return [{**row, "input": f"{row['input_example']}\n{row['input']}"} for row in made]


def _fwe(tokenizer: Any, length: int, rows: int) -> Rows:
    room = length - _QUESTIONS["fwe"][1]  # the generator counts the prompt alone
    made: Rows = _generator("fwe_utils").sys_kwext(tokenizer=tokenizer, max_seq_length=room, num_samples=rows)
    return made


TASKS: dict[str, Callable[[Any, int, int], Rows]] = {
    "niah_single_1": _niah("repeat", "words", "numbers"),
    "niah_multikey_2": _niah("needle", "words", "numbers"),
    "niah_multikey_3": _niah("needle", "uuids", "uuids"),
    "vt": _vt,
    "cwe": _cwe,
    "fwe": _fwe,
}


def _generator(name: str) -> Any:
    # prepare_niah fetches a sentence splitter, which only essays need, unless it is not the first process.
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        return need(f"lm_eval.tasks.ruler.{name}", _REMEDY)
    finally:
        if rank is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = rank


def split(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A generated prompt as context, question and the beginning of the answer."""
    marker, max_new_tokens = _QUESTIONS[task.split("_")[0]]
    at = row["input"].rfind(marker)
    if at < 0:
        raise UsageError(f"a prompt of {task} has no question {marker!r}; this lm-eval is not 0.4.13, install that")
    return {
        "context": row["input"][:at],
        "question": row["input"][at:].strip() + " ",
        "answer_prefix": row["gen_prefix"],
        "answer": [str(answer) for answer in row["outputs"]],
        "task": task,
        "max_new_tokens": max_new_tokens,
    }


def rows_of(task: str, tokenizer: Any, length: int, rows: int, seed: int) -> Rows:
    """Rows of a task: prompt and answer together have at most `length` tokens. The same seed gives the same rows."""
    numpy = need("numpy", _REMEDY)
    random.seed(f"{seed} {task}")
    numpy.random.seed(random.getrandbits(32))
    with contextlib.redirect_stdout(sys.stderr):  # generators print
        return [split(task, row) for row in TASKS[task](tokenizer, length, rows)]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "mikv.ruler",
        "Makes rows of RULER's synthetic tasks, as a local dataset for python -m mikv.kvpress.",
        "example: python -m mikv.ruler --model ~/models --gguf qwen.gguf --length 4096 --rows 5 --output ruler",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_NAME", help="its tokenizer counts the tokens")
    parser.add_argument("--gguf", metavar="FILE", help="the GGUF file in that directory")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of prompt and answer (default: 4096)")
    parser.add_argument("--rows", type=int, default=5, help="of each task (default: 5)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="gets LENGTH/test.jsonl")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    tasks = [task for task in options.tasks.split(",") if task]
    for task in tasks:
        if task not in TASKS:
            raise UsageError(f"task {task} is not known; give some of {', '.join(TASKS)}")
    if options.rows < 1 or options.length < 512:
        raise UsageError("give --rows 1 or more and --length 512 or more")
    tokenizer = load_tokenizer(options.model, options.gguf)
    rows = []
    for task in tasks:
        rows += rows_of(task, tokenizer, options.length, options.rows, options.seed)
    folder = options.output / str(options.length)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{folder / 'test.jsonl'}: {len(rows)} rows of {', '.join(tasks)}")
    return 0


if __name__ == "__main__":
    sys.exit(run("mikv.ruler", main, sys.argv[1:]))
