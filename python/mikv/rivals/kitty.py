"""Kitty, simulated (Xia et al., arXiv 2511.18643).

KIVI's layout in pages of 128 tokens: keys by channel over a page, values by token. In each page and head the channels
of keys with the greatest mean magnitude have 4 bits, the others 2. The first 32 tokens stay in 16 bits.

Defaults: an eighth of the channels has 4 bits, with which OSCAR's authors count Kitty at 2.39 bits; Kitty-Pro is
share=0.2. Our reading: a scale and a zero of 16 bits per channel and page and per token, one bit per channel and page
that tells which have 4 bits, and 16 bits for tokens of an incomplete page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Layer, Part, Stored, rtn
from .kivi import Values


@dataclass
class Keys(Part):
    bits: int = 2
    more: int = 4
    share: float = 0.125

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        heads, n, channels = x.shape
        pages = x.reshape(heads, n // self.block, self.block, channels)
        n_more = int(channels * self.share + 1e-6)
        bits = torch.full((heads, n // self.block, 1, channels), float(self.bits))
        if n_more:
            bits.scatter_(3, pages.abs().mean(2, keepdim=True).topk(n_more, dim=3).indices, float(self.more))
        codes = float(bits.sum()) * self.block
        n_pages = heads * (n // self.block)
        stored = Stored(codes=codes, scales=float(n_pages * channels * (32 + 1)))
        return rtn(pages, bits, 2).reshape(x.shape), stored


def layer(k: float = 2, v: float = 2, more: int = 4, share: float = 0.125, page: int = 128, sink: int = 32) -> Layer:
    return Layer(
        Keys(sink=sink, block=page, bits=int(k), more=more, share=share),
        Values(sink=sink, block=page, bits=int(v), group=128),
    )
