"""What a model's config says, where models write it differently."""

from __future__ import annotations

from typing import Any


def head_dim_of(config: Any) -> int:
    """Channels of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
