"""KIVI, simulated (Liu et al., arXiv 2402.02750).

Keys are quantised by channel, in groups of consecutive tokens; values by token, in groups of channels. Rounding is to
nearest between minimum and maximum, with a scale and a zero per group. Recent tokens stay in 16 bits: keys until
`residual` of them have come together, values always the last `residual`.

Defaults are the paper's: groups of 32, residual 128. Our reading where it is silent: scales and zeros have 16 bits each,
and a group of channels is no longer than a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Layer, Part, Stored, groups_of, rtn


@dataclass
class Keys(Part):
    bits: int = 2
    group: int = 32

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        heads, n, channels = x.shape
        grouped = x.reshape(heads, n // self.group, self.group, channels)
        stored = Stored(codes=x.numel() * self.bits, scales=32.0 * x.numel() / self.group)
        return rtn(grouped, self.bits, 2).reshape(x.shape), stored


@dataclass
class Values(Part):
    bits: int = 2
    group: int = 32

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        group = groups_of(x.shape[2], self.group)
        stored = Stored(codes=x.numel() * self.bits, scales=32.0 * x.numel() / group)
        return rtn(x.reshape(*x.shape[:2], -1, group), self.bits, 3).reshape(x.shape), stored


def layer(k: float = 2, v: float = 2, group: int = 32, residual: int = 128) -> Layer:
    if residual % group:
        raise ValueError(f"kivi: residual={residual} is no multiple of group={group}")
    return Layer(Keys(block=residual, bits=int(k), group=group), Values(recent=residual, bits=int(v), group=group))
