"""What the simulations share: a layer over Transformers' DynamicLayer, quantisers, and the count of bits.

A simulated layer keeps keys and values as floats, with the values that its method would read back. Attention is
Transformers' own. What the method would store is counted: codes, scales, windows in 16 bits, and what it fits and keeps.
Tokens are seen exactly by the step that brings them, and as stored by later steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

#: Bits of a number that is stored without quantisation.
HALF = 16


@dataclass
class Stored:
    """Bits that a method stores, by purpose."""

    codes: float = 0.0
    scales: float = 0.0  #: scales, zeros, norms
    window: float = 0.0  #: tokens in 16 bits: sinks, the most recent, an incomplete block
    fitted: float = 0.0  #: rotations and tables that are fitted and kept

    def add(self, other: Stored) -> None:
        self.codes += other.codes
        self.scales += other.scales
        self.window += other.window
        self.fitted += other.fitted

    @property
    def total(self) -> float:
        return self.codes + self.scales + self.window + self.fitted


@dataclass
class Part:
    """How the keys, or the values, of one layer are stored. Tokens are [heads, n, channels]."""

    sink: int = 0  #: first tokens, kept in 16 bits
    recent: int = 0  #: last tokens, kept in 16 bits
    block: int = 1  #: tokens that are quantised together
    done: int = field(default=0, init=False)  #: tokens that are quantised, sinks included
    stored: Stored = field(default_factory=Stored, init=False)

    def fit(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Sees the prompt once, before anything is encoded. q: [query heads, n, channels]."""

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Stored]:
        """What is read back of x, and what storing it costs. n is a multiple of `block`."""
        raise NotImplementedError

    def settle(self, x: torch.Tensor) -> None:
        """Encodes in x, in place, the tokens whose turn has come."""
        n = x.shape[1]
        start = max(self.done, min(self.sink, n))
        end = start + max(0, n - start - self.recent) // self.block * self.block
        if end <= start:
            return
        x[:, start:end], stored = self.encode(x[:, start:end])
        self.stored.add(stored)
        self.done = end

    def count(self, x: torch.Tensor) -> Stored:
        heads, n, channels = x.shape
        coded = max(0, self.done - self.sink)
        total = Stored(window=float(HALF * heads * channels * (n - coded)))
        total.add(self.stored)
        return total


class Layer(DynamicLayer):  # type: ignore[misc]
    """One layer of a simulated cache; batches of one row."""

    def __init__(self, keys: Part, values: Part) -> None:
        super().__init__()
        self.key_part, self.value_part = keys, values
        self._is_fitted = False

    def calibrate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Fits on another text, instead of on the prompt."""
        for part in (self.key_part, self.value_part):
            part.fit(q[0], k[0], v[0])
        self._is_fitted = True

    def prompt(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Takes a prompt that was read exactly, with its queries."""
        if not self._is_fitted:
            self.calibrate(q, k, v)
        self.update(k, v)
        self.settle()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if key_states.shape[0] != 1:
            raise ValueError("a simulated cache holds one row")
        self.settle()
        return super().update(key_states, value_states, *args, **kwargs)

    def settle(self) -> None:
        if self.is_initialized and self.keys.numel():
            self.key_part.settle(self.keys[0])
            self.value_part.settle(self.values[0])

    def count(self) -> Stored:
        self.settle()
        total = self.key_part.count(self.keys[0])
        total.add(self.value_part.count(self.values[0]))
        return total


def half(x: torch.Tensor) -> torch.Tensor:
    """As it comes back from 16 bits."""
    return x.to(torch.float16).to(torch.float32)


def rtn(x: torch.Tensor, n_bits: torch.Tensor | int, dim: int, clip: float = 1.0) -> torch.Tensor:
    """Round to nearest between the least and the greatest value along `dim`; scale and zero in 16 bits.

    n_bits may be a tensor that broadcasts over x. clip < 1 narrows the range around its middle.
    """
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    if clip != 1.0:
        middle, reach = (low + high) / 2, (high - low) / 2 * clip
        low, high = middle - reach, middle + reach
    steps = 2.0**n_bits - 1
    low = half(low)
    scale = half((high - low) / steps)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.minimum(((x - low) / safe).round().clamp_min(0), torch.as_tensor(steps, dtype=x.dtype))
    return codes * scale + low


def groups_of(n: int, size: int) -> int:
    """The group size to use for n numbers: the largest divisor of n that is at most `size`."""
    size = min(size, n)
    while n % size:
        size -= 1
    return size


def hadamard(n: int) -> torch.Tensor:
    """The orthonormal Walsh-Hadamard matrix; n is a power of 2."""
    if n & (n - 1):
        raise ValueError(f"a Hadamard rotation of {n} channels; a power of 2 is needed")
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / n**0.5


def random_rotation(n: int, seed: int) -> torch.Tensor:
    """An orthogonal matrix, uniform over all of them. A seed brings it back, so it takes no memory."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).to(torch.float32)


_LEVELS: dict[int, torch.Tensor] = {}


def gaussian_levels(n_bits: int) -> torch.Tensor:
    """The 2^n_bits levels of least mean squared error for a standard normal number (Lloyd, Max)."""
    if n_bits not in _LEVELS:
        x = torch.linspace(-8, 8, 160001, dtype=torch.float64)
        weight = torch.exp(-x * x / 2)
        levels = torch.distributions.Normal(0.0, 1.0).icdf(
            (torch.arange(2**n_bits, dtype=torch.float64) + 0.5) / 2**n_bits
        )
        total = torch.cat([torch.zeros(1, dtype=torch.float64), weight.cumsum(0)])
        first = torch.cat([torch.zeros(1, dtype=torch.float64), (weight * x).cumsum(0)])
        for _ in range(2000):
            cut = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
            edges = torch.cat([torch.zeros(1, dtype=torch.long), cut, torch.tensor([len(x)])])
            moved = (first[edges[1:]] - first[edges[:-1]]) / (total[edges[1:]] - total[edges[:-1]])
            if float((moved - levels).abs().max()) < 1e-9:
                break
            levels = moved
        _LEVELS[n_bits] = levels.to(torch.float32)
    return _LEVELS[n_bits]


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The nearest of ascending levels."""
    return levels[torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2)]
