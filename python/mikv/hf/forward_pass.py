"""A forward pass through the layers: its tokens, and what each layer passes to the context."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _library as c

TYPES = {torch.float32: c.F32, torch.bfloat16: c.BF16, torch.float16: c.F16}
#: Tokens that pass through a layer at once.
AT_ONCE = 512


class ForwardPass:
    """A forward pass that has reached some layers."""

    def __init__(self, n: int, real: list[np.ndarray[Any, Any] | slice], n_real: list[int]) -> None:
        self.n = n  #: tokens of a row, padding included
        self.real = real  #: by row: which of them are no padding
        self.n_real = n_real
        self.any_padding = any(k < n for k in n_real)
        self.done: set[int] = set()  #: layers that attended

    def places(self) -> np.ndarray[Any, Any]:
        """[rows, n]: which places hold a token."""
        places = np.zeros((len(self.real), self.n), dtype=bool)
        for row, which in enumerate(self.real):
            places[row, which] = True
        return places


class Call:
    """What a layer passes to the context. One pack for all fields: this is done for every layer of every token."""

    _FIELDS = struct.Struct("@QQQIff4xQ" + 4 * "Qi4xQQQ")
    assert _FIELDS.size == ctypes.sizeof(c.TensorCall)

    def __init__(self) -> None:
        self.call = c.TensorCall()
        self._sequences = np.empty(0, np.int32)
        self._known: list[int] = []  #: what _sequences has
        self._address = 0

    def fill(
        self,
        sequences: list[int],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        scoring: Scoring,
    ) -> None:
        """q, k, v: [rows, heads, n, channels]; out: [rows, n, heads, channels]. They outlive the call."""
        if sequences != self._known:
            self._known = list(sequences)
            self._sequences = np.array(sequences, np.int32)
            self._address = self._sequences.ctypes.data
        (q0, q1, q2, _), (k0, k1, k2, _), (v0, v1, v2, _) = q.stride(), k.stride(), v.stride()
        o0, o1, o2, _ = out.stride()
        of = TYPES[q.dtype]
        self._FIELDS.pack_into(
            self.call, 0, self._FIELDS.size, self._address, len(sequences), q.shape[2], scoring.scale, scoring.softcap,
            0 if scoring.sinks is None else scoring.sinks.data_ptr(),
            q.data_ptr(), of, q0, q2, q1, k.data_ptr(), TYPES[k.dtype], k0, k2, k1,
            v.data_ptr(), TYPES[v.dtype], v0, v2, v1, out.data_ptr(), of, o0, o1, o2,
        )  # fmt: skip


class Scoring(NamedTuple):
    """How logits are made, as mikv_attend_args has it."""

    scale: float
    softcap: float
    sinks: torch.Tensor | None  #: by head, float32


def real_tokens(padding: torch.Tensor | None, n_rows: int, n: int) -> tuple[list[Any], list[int]]:
    """By row: which of its n new tokens are no padding (a slice where they stand together), and how many."""
    if padding is None:
        return [slice(0, n)] * n_rows, [n] * n_rows
    if padding.shape[0] != n_rows or padding.shape[1] < n:
        raise ValueError(f"the padding mask has shape {list(padding.shape)}; the batch has {n_rows} rows of {n} tokens")
    new = padding[:, padding.shape[1] - n :].to(torch.bool).numpy()
    real: list[Any] = []
    counts: list[int] = []
    for row in new:
        index = np.flatnonzero(row)
        counts.append(len(index))
        together = len(index) == 0 or index[-1] - index[0] + 1 == len(index)
        real.append(
            slice(int(index[0]), int(index[-1]) + 1) if together and len(index) else slice(0, 0) if together else index
        )
    return real, counts


def parts(which: np.ndarray[Any, Any] | slice, count: int) -> Iterator[torch.Tensor | slice]:
    """The real tokens of a row, AT_ONCE at a time."""
    for first in range(0, count, AT_ONCE):
        if isinstance(which, slice):
            yield slice(which.start + first, min(which.stop, which.start + first + AT_ONCE))
        else:
            yield torch.from_numpy(which[first : first + AT_ONCE])
