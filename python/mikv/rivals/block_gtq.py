"""Block-GTQ, simulated (Liang et al., arXiv 2606.24033; the authors' README and comments have the settings).

RoPE turns channels in pairs, called blocks. A block's score is the mean of |q|^2 and |k|^2 over its two channels, halved.
Bits go one by one to the block whose score times 4 to the minus its bits is greatest, from 1 to at most 8, until the
mean is the wanted one. Blocks of equal bits form a vector that TurboQuant quantises, with a norm of its own; below 3
bits without a rotation. Values are TurboQuant's.

Scores are measured on the prompt itself, where the authors take other text: it can only help. Our reading: 16 bits per
norm, the rounded direction gets length 1 again, 3 bits per block tell its bits, and there is no window (the paper's first
setting); sink=4,recent=128 is its second. A pair is channels i and i + n/2, as Transformers turns them in Llama and Qwen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .base import HALF, Layer, Part, Stored, random_rotation
from .turboquant import Vectors, mse


def allocate(scores: torch.Tensor, budget: int, least: int = 1, most: int = 8) -> torch.Tensor:
    """Bits of each block: greedy by marginal gain."""
    bits = torch.full((len(scores),), least)
    for _ in range(budget - least * len(scores)):
        gain = torch.where(
            bits < most, scores.double() * 4.0 ** (-bits.double()), torch.tensor(-1.0, dtype=torch.float64)
        )
        bits[int(gain.argmax())] += 1
    return bits


@dataclass
class Keys(Part):
    bits: float = 2
    seed: int = 0
    _bits: list[torch.Tensor] = field(default_factory=list, init=False)

    def fit(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        heads, _, channels = k.shape
        energy_q = q.reshape(heads, -1, channels).square().mean(1)
        energy = (energy_q + k.square().mean(1)) / 2
        scores = energy[:, : channels // 2] + energy[:, channels // 2 :]
        self._bits = [allocate(row, int(self.bits * (channels // 2))) for row in scores]

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        out, stored = torch.empty_like(x), Stored()
        n = x.shape[1]
        for head, bits in enumerate(self._bits):
            both = torch.cat([bits, bits])
            for width in bits.unique().tolist():
                index = torch.nonzero(both == width)[:, 0]
                rotation = torch.eye(len(index)) if width < 3 else random_rotation(len(index), self.seed + width)
                out[head][:, index] = mse(x[head][:, index], width, rotation, correct=True)
                stored.add(Stored(codes=float(width * len(index) * n), scales=float(HALF * n)))
        return out, stored

    def count(self, x: torch.Tensor) -> Stored:
        total = super().count(x)
        total.fitted += sum(3.0 * len(bits) for bits in self._bits)
        return total


def layer(k: float = 2, v: float = 2, sink: int = 0, recent: int = 0, seed: int = 7) -> Layer:
    return Layer(
        Keys(sink=sink, recent=recent, bits=k, seed=seed),
        Vectors(sink=sink, recent=recent, bits=v, seed=seed + 100, keys=False),
    )
