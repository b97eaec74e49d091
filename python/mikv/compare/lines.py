"""Line retrieval of LongEval's kind: a record of named lines with a number each, one of which is asked for."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_FIRST = [
    "amber",
    "brave",
    "calm",
    "clever",
    "copper",
    "dusty",
    "eager",
    "faint",
    "gentle",
    "golden",
    "happy",
    "hollow",
    "icy",
    "jolly",
    "keen",
    "lively",
    "lucky",
    "mellow",
    "misty",
    "noble",
    "olive",
    "proud",
    "quick",
    "quiet",
    "rapid",
    "rusty",
    "salty",
    "silent",
    "silver",
    "sleepy",
    "sunny",
    "tidy",
    "vivid",
    "warm",
    "witty",
    "young",
]
_SECOND = [
    "acorn",
    "badger",
    "basin",
    "bell",
    "bridge",
    "canyon",
    "cedar",
    "cloud",
    "comet",
    "coral",
    "daisy",
    "ember",
    "falcon",
    "fern",
    "forest",
    "garden",
    "harbor",
    "heron",
    "island",
    "jacket",
    "kettle",
    "lantern",
    "maple",
    "meadow",
    "mirror",
    "otter",
    "pebble",
    "pillow",
    "planet",
    "river",
    "saddle",
    "sparrow",
    "tower",
    "tulip",
    "valley",
    "willow",
    "window",
]

_HEADER = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of a "
    "certain line index. Now the record start:\n\n"
)

#: All names differ.
MOST_LINES = len(_FIRST) * len(_SECOND)


@dataclass(frozen=True)
class LineCase:
    prompt: str  #: the user's message
    prefix: str  #: how the answer begins
    expected: str  #: decimal digits


def make_case(n_lines: int, seed: int, index: int) -> LineCase:
    """Case `index` of a series. The same arguments give the same case."""
    if not 1 <= n_lines <= MOST_LINES:
        raise ValueError(f"--lines {n_lines}: from 1 to {MOST_LINES} lines")
    chance = random.Random(f"mikv lines {seed} {index}")
    names = chance.sample([f"{a}-{b}" for a in _FIRST for b in _SECOND], n_lines)
    numbers = [chance.randint(1, 50000) for _ in names]
    asked = chance.randrange(n_lines)
    record = "".join(
        f"line {name}: REGISTER_CONTENT is <{number}>\n" for name, number in zip(names, numbers, strict=True)
    )
    question = (
        f"\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {names[asked]}? I need the number."
    )
    return LineCase(
        _HEADER + record + question, f"The <REGISTER_CONTENT> in line {names[asked]} is <", str(numbers[asked])
    )


def is_complete(answer: str) -> bool:
    """True once nothing that follows can change the number."""
    return re.match(r"\D*\d[\d,]*[^\d,]", answer) is not None


def is_right(answer: str, expected: str) -> bool:
    """True if the first number of the answer is the expected one."""
    found = re.search(r"\d+(,\d{3})*", answer)  # "12,345" is one number
    return found is not None and found[0].replace(",", "").lstrip("0") == expected
