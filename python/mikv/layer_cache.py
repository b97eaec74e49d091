from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .context import Context, Floats, MemoryUsage, TokenStates
from .spec import Spec


class LayerCache:
    """The cache of one attention layer and one sequence: the smallest way to use the tiers.

    >>> import numpy as np
    >>> cache = LayerCache("mikv", n_heads=4, n_kv_heads=2, head_dim=64)
    >>> def random(n, heads): return np.random.rand(n, heads, 64).astype(np.float32)
    >>> prompt = cache.attend(random(300, 4), random(300, 2), random(300, 2))
    >>> token = cache.attend(random(1, 4), random(1, 2), random(1, 2))  # compresses the prompt first
    >>> len(cache), cache.memory_usage().bits_per_element < 8
    (301, True)
    """

    def __init__(
        self,
        spec: Spec | str = "mikv",
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        max_tokens: int = 32768,
        window: int = 0,
        rope: Sequence[float] | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.context = Context(spec, n_cells=max_tokens, n_threads=n_threads)
        self.context.add_layer(0, (n_heads, n_kv_heads, head_dim, head_dim), window=window, rope=rope)

    def attend(self, q: Any, k: Any, v: Any, *, scale: float | None = None) -> Floats:
        """Keeps k and v and attends; see Step.attend(). Several tokens are a prompt, one is generated."""
        n = len(k)
        with self.context.step([(0, n)], outputs="last" if n == 1 else "none") as step:
            return step.attend(0, q, k, v, scale=scale)

    def crop(self, n_tokens: int) -> None:
        """Forgets all but the first n_tokens."""
        self.context.remove(0, n_tokens)

    def __len__(self) -> int:
        return self.context.length(0)

    def memory_usage(self) -> MemoryUsage:
        return self.context.memory_usage()

    def tokens(self, kv_head: int) -> TokenStates:
        return self.context.tokens(0, kv_head)
