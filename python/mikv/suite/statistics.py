"""How sure a score is, and whether two caches differ on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping

_Z = 1.959963984540054  #: of the normal distribution, 97.5 %


def wilson(n_correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's formula; (0, 1) without items."""
    if n == 0:
        return 0.0, 1.0
    share = n_correct / n
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At the ends the formula gives 0 and 1, but for rounding.
    return (0.0 if n_correct == 0 else middle - half), (1.0 if n_correct == n else middle + half)


def mcnemar(n_lost: int, n_won: int) -> float:
    """The two-sided p of McNemar's exact test: how likely so uneven a split is where both caches are equally good."""
    n = n_lost + n_won
    tail = sum(math.comb(n, k) for k in range(min(n_lost, n_won) + 1))
    return min(1.0, 2 * tail / (1 << n))  # whole numbers: no overflow


def paired(ours: Mapping[str, bool], reference: Mapping[str, bool]) -> dict[str, float | int]:
    """Items that both have: how many only the reference answers, how many only ours, and McNemar's p."""
    common = [item for item in ours if item in reference]
    lost = sum(reference[item] and not ours[item] for item in common)
    won = sum(ours[item] and not reference[item] for item in common)
    return {"n": len(common), "lost": lost, "won": won, "p": mcnemar(lost, won)}
