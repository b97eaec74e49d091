"""Rivals that have no package here, as reference simulations over Transformers' DynamicCache.

A simulation says what a method's stored keys and values do to a model, and how many bits they take. It says nothing of
speed or of the process's memory. Each file names its source and our reading where the source is silent.

>>> parse("kivi-2").name
'sim:kivi-2'
>>> parse("kvarn-k4v2:sink=4").options
{'k': 4.0, 'v': 2.0, 'sink': 4}
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import block_gtq, kitty, kivi, kvarn, oscar, turboquant
from .base import Layer, Stored

METHODS: dict[str, Callable[..., Layer]] = {
    "kivi": kivi.layer,
    "turboquant": turboquant.layer,
    "kvarn": kvarn.layer,
    "kitty": kitty.layer,
    "oscar": oscar.layer,
    "block-gtq": block_gtq.layer,
}

_NUMBER = r"\d+(?:\.5)?"
_NAME = re.compile(rf"(?P<method>[a-z]+(?:-gtq)?)(?:-(?:(?P<both>{_NUMBER})|k(?P<k>{_NUMBER})v(?P<v>{_NUMBER})))?$")
#: Methods that know half bits.
_HALVES = {"turboquant": "kv", "block-gtq": "kv"}


@dataclass(frozen=True)
class Rival:
    """A simulated method with its options."""

    name: str  #: with "sim:" before it, always
    method: str
    options: dict[str, Any]

    def layer(self) -> Layer:
        return METHODS[self.method](**self.options)


def parse(text: str) -> Rival:
    """As "kivi-2", "kvarn-k4v2", "kivi-2:group=64,residual=64"; ValueError tells what would do."""
    head, _, tail = text.partition(":")
    found = _NAME.match(head)
    if found is None or found["method"] not in METHODS:
        raise ValueError(
            f"sim:{text} is no simulation; there are {', '.join(METHODS)}, as in sim:kivi-2 or sim:kvarn-k4v2"
        )
    method = found["method"]
    k, v = (found["both"] or found["k"], found["both"] or found["v"])
    options: dict[str, Any] = {"k": float(k), "v": float(v)} if k and v else {}
    known = inspect.signature(METHODS[method]).parameters
    for item in filter(None, tail.split(",")):
        key, _, value = item.partition("=")
        if key not in known or key in "kv" or not re.fullmatch(r"\d+(\.\d+)?", value):
            names = ", ".join(name for name in known if name not in "kv")
            raise ValueError(f"sim:{text}: {item} is no option of {method}; there are {names}, with numbers")
        options[key] = float(value) if isinstance(known[key].default, float) and key not in "kv" else int(float(value))
    for key in "kv":
        bits = options.get(key, 2.0)
        if not 1 <= bits <= 8 or (bits % 1 and key not in _HALVES.get(method, "")):
            raise ValueError(f"sim:{text}: {bits:g} bits; {method} takes whole numbers from 1 to 8")
    METHODS[method](**options)  # options that do not fit together
    return Rival(f"sim:{text}", method, options)


__all__ = ["METHODS", "Layer", "Rival", "Stored", "parse"]
