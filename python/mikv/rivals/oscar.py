"""OSCAR, simulated (Zhou et al., arXiv 2605.17757; the authors' README has the settings).

Keys and values are turned, then rounded to 2 bits between minimum and maximum by token, in groups of up to 128 channels.
The rotation of a KV head is U H P: the eigenvectors U of a covariance by falling eigenvalue, a Hadamard matrix, and the
permutation that reverses the bits of an index. For keys the covariance is that of the queries which read the head. For
values it is the sum of v v' over tokens, each weighted by k' C k, where C is the covariance of the queries. Ranges are
clipped to 0.96 (keys) and 0.92 (values). The first 64 and the last 256 tokens stay in 16 bits.

The authors fit on 10,000 to 30,000 tokens of other text. Here the rotation is fitted on the very prompt that it serves,
which needs no other text and can only help. Our reading: a rotation per KV head (the authors' second format), scales and
zeros of 16 bits, clipping narrows the range around its middle. The rotations, in 16 bits, are counted as fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .base import HALF, Layer, Part, Stored, groups_of, hadamard, rtn


def bit_reversal(n: int) -> torch.Tensor:
    width = n.bit_length() - 1
    return torch.tensor([int(format(i, f"0{width}b")[::-1], 2) if width else 0 for i in range(n)])


def rotation_of(covariance: torch.Tensor) -> torch.Tensor:
    """[heads, n, n] to orthogonal matrices of the same shape."""
    n = covariance.shape[-1]
    vectors = torch.linalg.eigh(covariance.double()).eigenvectors.flip(-1).float()
    return (vectors @ hadamard(n))[..., bit_reversal(n)]


@dataclass
class Rotated(Part):
    bits: int = 2
    clip: float = 1.0
    group: int = 128
    keys: bool = True
    _rotation: torch.Tensor | None = field(default=None, init=False)

    def fit(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        heads = k.shape[0]
        of_head = q.reshape(heads, -1, q.shape[-1])  # the query heads of a KV head stand together
        covariance = of_head.transpose(1, 2) @ of_head / of_head.shape[1]
        if not self.keys:
            weight = ((k @ covariance) * k).sum(-1, keepdim=True)
            covariance = (v * weight).transpose(1, 2) @ v / v.shape[1]
        self._rotation = rotation_of(covariance)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        assert self._rotation is not None
        group = groups_of(x.shape[2], self.group)
        turned = (x @ self._rotation).reshape(*x.shape[:2], -1, group)
        back = rtn(turned, self.bits, 3, self.clip).reshape(x.shape) @ self._rotation.transpose(1, 2)
        return back, Stored(codes=float(self.bits * x.numel()), scales=32.0 * x.numel() / group)

    def count(self, x: torch.Tensor) -> Stored:
        total = super().count(x)
        total.fitted += 0 if self._rotation is None else float(HALF * self._rotation.numel())
        return total


def layer(k: float = 2, v: float = 2, sink: int = 64, recent: int = 256, group: int = 128) -> Layer:
    return Layer(
        Rotated(sink=sink, recent=recent, bits=int(k), clip=0.96, group=group, keys=True),
        Rotated(sink=sink, recent=recent, bits=int(v), clip=0.92, group=group, keys=False),
    )
