"""TurboQuant, simulated (Zandieh et al., arXiv 2504.19874).

A vector is divided by its norm, turned by a random rotation, and each coordinate rounded to the nearest level of the
best scalar quantiser for its distribution. The norm is kept in 16 bits. All tokens are quantised, generated ones too.

With prod=1 keys have one bit less per coordinate, and the signs of a random projection of what is left over (QJL) plus
its norm in 16 bits make inner products unbiased; read back as a vector, that is the same estimate.
A half bit, such as 2.5, splits channels in two parts with a norm each: those with the greatest mean magnitude over the
prompt get one bit more, as the paper does for its outlier channels.

Our reading: the levels are those for a normal distribution, to which the paper's tends at a head's size; one rotation
serves all heads of a layer; it comes from a seed and takes no memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from .base import HALF, Layer, Part, Stored, gaussian_levels, half, nearest, random_rotation


def mse(x: torch.Tensor, bits: int, rotation: torch.Tensor, correct: bool = False) -> torch.Tensor:
    """What comes back of x [..., n]. `correct` gives the rounded direction its length 1 again."""
    n = x.shape[-1]
    norm = half(x.norm(dim=-1, keepdim=True))
    unit = x / norm.clamp_min(1e-8)
    levels = gaussian_levels(bits) / math.sqrt(n)
    rounded = nearest(unit @ rotation, levels)
    if correct:
        rounded = rounded / rounded.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    return rounded @ rotation.T * norm


@dataclass
class Vectors(Part):
    bits: float = 2
    prod: bool = False
    seed: int = 0
    _outlier: torch.Tensor | None = field(default=None, init=False)
    keys: bool = True

    def fit(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        x = k if self.keys else v
        heads, _, channels = x.shape
        n = round((self.bits - math.floor(self.bits)) * channels)
        if n:
            most = x.abs().mean(1).topk(n, dim=-1).indices
            self._outlier = torch.zeros(heads, channels, dtype=torch.bool).scatter_(1, most, True)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        heads, n, channels = x.shape
        low = math.floor(self.bits)
        if self._outlier is None:
            return self._coded(x, low)
        out, stored = torch.empty_like(x), Stored()
        for chosen, bits in ((self._outlier, low + 1), (~self._outlier, low)):
            index = torch.nonzero(chosen)[:, 1].reshape(heads, 1, -1).expand(heads, n, -1)
            back, cost = self._coded(x.gather(2, index), bits)
            out.scatter_(2, index, back)
            stored.add(cost)
        return out, stored

    def count(self, x: torch.Tensor) -> Stored:
        total = super().count(x)
        total.fitted += 0 if self._outlier is None else self._outlier.numel()
        return total

    def _coded(self, x: torch.Tensor, bits: int) -> tuple[torch.Tensor, Stored]:
        heads, n, channels = x.shape
        norms = float(HALF * heads * n)
        rotation = random_rotation(channels, self.seed)
        if not self.prod:
            return mse(x, bits, rotation), Stored(codes=float(bits * x.numel()), scales=norms)
        back = mse(x, bits - 1, rotation) if bits > 1 else torch.zeros_like(x)
        left = x - back
        projection = torch.randn(channels, channels, generator=torch.Generator().manual_seed(self.seed + 1))
        signs = torch.where(left @ projection >= 0, 1.0, -1.0)
        scale = half(left.norm(dim=-1, keepdim=True)) * (math.sqrt(math.pi / 2) / channels)
        return back + signs @ projection.T * scale, Stored(codes=float(bits * x.numel()), scales=2 * norms)


def layer(k: float = 2, v: float = 2, prod: int = 0, sink: int = 0, recent: int = 0, seed: int = 7) -> Layer:
    return Layer(
        Vectors(sink=sink, recent=recent, bits=k, prod=bool(prod), seed=seed, keys=True),
        Vectors(sink=sink, recent=recent, bits=v, seed=seed + 100, keys=False),
    )
