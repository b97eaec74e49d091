"""How sure a score is, and whether two caches differ on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping

_Z = 1.959963984540054  #: of the normal distribution, 97.5 %


def wilson(n_correct: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's formula; (0, 1) without items.

    Where items are right by a share, n_correct is the sum of shares. The interval is wider than it need be then, because
    shares vary less than 0 and 1 of the same mean.
    """
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


def paired(ours: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float | int]:
    """Items that both have: how many the reference answers better, how many ours, and McNemar's p.

    Scores are 0 and 1, or shares, of which better and worse are counted (the sign test, which McNemar's is of 0 and 1).
    """
    common = [item for item in ours if item in reference]
    lost = sum(ours[item] < reference[item] for item in common)
    won = sum(ours[item] > reference[item] for item in common)
    return {"n": len(common), "lost": lost, "won": won, "p": mcnemar(lost, won)}


def difference(ours: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float] | None:
    """The mean of ours - reference over items that both have, and its standard error; None with fewer than two."""
    apart = [ours[item] - reference[item] for item in ours if item in reference]
    n = len(apart)
    if n < 2:
        return None
    mean = math.fsum(apart) / n
    return {"mean": mean, "standard_error": math.sqrt(math.fsum((x - mean) ** 2 for x in apart) / (n - 1) / n)}
