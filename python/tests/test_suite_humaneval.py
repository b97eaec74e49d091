"""HumanEval's answers as models give them: in fences, with the signature, with tabs (R37 of the project's reports)."""

from __future__ import annotations

import ast
import textwrap

import pytest

from mikv._cli import UsageError
from mikv.suite.humaneval import body, is_complete, problems

PROMPT = 'from typing import List\n\n\ndef largest(xs: List[int]) -> int:\n    """ The largest.\n    >>> largest([1, 2])\n    2\n    """\n'
BARE = "    best = xs[0]\n    for x in xs:\n        if x > best:\n            best = x\n    return best\n"
WHOLE = PROMPT + BARE
DEDENTED = textwrap.dedent(BARE)

ANSWERS = {
    "bare": BARE,
    "without the last newline": BARE.rstrip("\n"),
    "tabs": BARE.replace("    ", "\t"),
    "empty line first": "\n" + BARE,
    "carriage returns": BARE.replace("\n", "\r\n"),
    "what follows": BARE + "\n\nprint(largest([1]))\nassert False\n",
    "another function": BARE + "\n\ndef other(x):\n    return largest(\n",
    "itself again": BARE + "\n\ndef largest(xs):\n    return None\n",
    "fence at the end": BARE + "```\n\nThis returns the largest.\n",
    "fenced body": f"```python\n{BARE}```\n",
    "fenced, not closed": f"```python\n{BARE}",
    "fenced function": f"```python\n{WHOLE}```\n",
    "fenced function with prose": f"Here is the code:\n\n```python\n{WHOLE}```\n\nIt is simple.\n",
    "prose after a space": f" Sure!\n\n```py\n{WHOLE}```\n",
    "fenced function, tabs": f"```\n{WHOLE.replace('    ', chr(9))}```",
    "fenced, indented": f"```python\n{textwrap.indent(WHOLE[WHOLE.index('def'):], '    ')}```\n",
    "two fences": f"```\npip install x\n```\nand\n```python\n{WHOLE}```\n",
    "function": WHOLE,
    "function, then prose": WHOLE + "\nThis function returns the largest.\n",
    "function, then its use": WHOLE + "\nprint(largest([]))\n",
    "first indentation lost": BARE.lstrip(),
    "one space first": " " + BARE.lstrip(),
    "all indentation lost": DEDENTED,
    "all indentation lost, fenced": f"```python\n{DEDENTED}```\n",
    "indentation lost, fence at the end": f"{DEDENTED}```\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_as_good_as_the_bare_body(name):
    program = PROMPT + body(PROMPT, "largest", ANSWERS[name])
    ast.parse(program)
    names: dict = {}
    exec(program, names)
    assert names["largest"]([3, 9, 4]) == 9
    assert names["largest"]([-2]) == -2


@pytest.mark.parametrize(
    "answer", ["", "\n\n", "I cannot help with that.", "```\n```", "```", "    ", "\0", "    return (" * 300]
)
def test_an_answer_without_code_is_no_error(answer):
    assert isinstance(body(PROMPT, "largest", answer), str)


def test_a_quoted_text_at_the_margin_does_not_end_a_body():
    answer = '    text = """\nline at the margin\n"""\n    return text\n\nprint(1)\n'
    names: dict = {}
    exec(PROMPT + body(PROMPT, "largest", answer), names)
    assert names["largest"]([]) == "\nline at the margin\n"


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        ("    return 1\n", False),
        ("    return 1\n\n\nprint", False),  # the last line may become anything
        ("    return 1\n\n\nprint(\n", True),
        ("```python\ndef f():\n    return 1\n", False),
        ("```python\ndef f():\n    return 1\n\n\ndef g():\n", False),
        ("```python\ndef f():\n    return 1\n```\n", True),
        ("```\npip install x\n```\n", False),
        (" Here it is:\n\n```python\n", False),
        ("def f():\n    return 1\n", False),
        ("", False),
    ],
)
def test_an_answer_is_read_until_its_end(answer, complete):
    assert is_complete(answer, "f") == complete


def test_cutting_at_the_end_changes_nothing():
    for answer in ANSWERS.values():
        cut = next((answer[:n] for n in range(len(answer)) if is_complete(answer[:n], "largest")), answer)
        names: dict = {}
        exec(PROMPT + body(PROMPT, "largest", cut), names)
        assert names["largest"]([3, 9, 4]) == 9


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("", 1, "empty"),
        ('{"task_id": "a", "prompt": "p", "entry_point": "e", "test": "t"}\n{"task_id": \n', 2, "no JSON"),
        ('{"task_id": "a", "prompt": "p", "entry_point": "e", "test": "t"}\n\n{"task_id": "b"}\n', 3, "'prompt'"),
        ('{"task_id": "a", "prompt": "p", "entry_point": 7, "test": "t"}\n', 1, "'entry_point' is no text"),
        ("[1]\n", 1, "no JSON object"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path, text, line, word):
    file = tmp_path / "problems.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=word) as error:
        problems(file)
    assert f"{file}:{line}:" in str(error.value)
