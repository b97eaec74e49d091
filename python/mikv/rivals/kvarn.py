"""KVarN, simulated (Mueller et al., arXiv 2606.03458; vLLM issues 44578 and 46613 word the same steps).

Tiles of 128 tokens of one head. Channels are turned by a Hadamard rotation. Then rows and columns of the tile are
divided by their standard deviations in turn, 16 times, so that neither tokens nor channels differ in variance. What is
left is rounded to nearest between minimum and maximum: keys by channel, values by token.

Stored: codes; for keys a scale and a zero per channel and tile (the channel's factor is part of them) and a factor per
token; for values a scale and a zero per token (its factor is part of them) and a factor per channel and tile; 16 bits
each. Tokens of an incomplete tile stay in 16 bits.

Our reading: the standard deviation is taken around the mean, a factor changes by at most a factor of 8 per pass, and of
the 16 passes the one is kept whose variances differ least. There are no sinks and no window beyond the incomplete tile,
as the paper counts 2.3 bits; sink= and recent= add them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import HALF, Layer, Part, Stored, hadamard, half, rtn

PASSES = 16


def balance(x: torch.Tensor, passes: int = PASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the rows [..., n, 1] and the columns [..., 1, m] that make the variances of x / rows / columns alike."""
    rows = torch.zeros_like(x[..., :1])
    columns = torch.zeros_like(x[..., :1, :])
    best, best_rows, best_columns = None, rows, columns
    limit = 2.0794415416798357  # log 8
    for _ in range(passes):
        y = x * torch.exp(-rows - columns)
        columns = columns + y.std(-2, keepdim=True).clamp_min(1e-8).log().clamp(-limit, limit)
        y = x * torch.exp(-rows - columns)
        rows = rows + y.std(-1, keepdim=True).clamp_min(1e-8).log().clamp(-limit, limit)
        y = x * torch.exp(-rows - columns)
        by_column, by_row = y.std(-2), y.std(-1)
        spread = by_column.amax(-1) / by_column.amin(-1).clamp_min(1e-8) + by_row.amax(-1) / by_row.amin(-1).clamp_min(
            1e-8
        )
        if best is None:
            best, best_rows, best_columns = spread, rows, columns
        else:
            better = (spread < best)[..., None, None]
            best = torch.minimum(spread, best)
            best_rows = torch.where(better, rows, best_rows)
            best_columns = torch.where(better, columns, best_columns)
    middle = best_rows.mean(-2, keepdim=True)  # what rows and columns share is the columns'
    return (best_rows - middle).exp(), (best_columns + middle).exp()


@dataclass
class Tiles(Part):
    bits: int = 2
    keys: bool = True

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        heads, n, channels = x.shape
        rotation = hadamard(channels)
        tiles = (x @ rotation).reshape(heads, n // self.block, self.block, channels)
        rows, columns = balance(tiles)
        dim = 2 if self.keys else 3
        if self.keys:  # columns, the channels' factors, are part of the scales
            rows = half(rows)
        else:
            middle = columns.log().mean(-1, keepdim=True).exp()
            rows, columns = rows * middle, half(columns / middle)
        back = rtn(tiles / rows / columns, self.bits, dim) * rows * columns
        pair, factor = (channels, self.block) if self.keys else (self.block, channels)
        n_tiles = heads * (n // self.block)
        stored = Stored(codes=float(self.bits * x.numel()), scales=float(HALF * n_tiles * (2 * pair + factor)))
        return back.reshape(x.shape) @ rotation.T, stored


def layer(k: float = 2, v: float = 2, tile: int = 128, sink: int = 0, recent: int = 0) -> Layer:
    return Layer(
        Tiles(sink=sink, recent=recent, block=tile, bits=int(k), keys=True),
        Tiles(sink=sink, recent=recent, block=tile, bits=int(v), keys=False),
    )
