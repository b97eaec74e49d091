"""What a model's config says of its layers."""

from __future__ import annotations

import json
from typing import Any

from transformers import cache_utils

from ..errors import Unsupported


def types_of(config: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Types of the layers, and what their cache needs to know."""
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise Unsupported(f"{config.model_type} shares keys between layers, which mikv does not hold")
    if hasattr(cache_utils, "get_layer_types_and_kwargs"):
        types, kwargs = cache_utils.get_layer_types_and_kwargs(config)
        if isinstance(kwargs, dict):  # up to 5.17: of all layers alike
            return list(types), [kwargs if "sliding" in kind else {} for kind in types]
        return list(types), list(kwargs)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        chunked = getattr(config, "attention_chunk_size", None) is not None
        kind = "full_attention" if window is None else "chunked_attention" if chunked else "sliding_attention"
        types = [kind] * config.num_hidden_layers
    return list(types), [{"sliding_window": window} if kind == "sliding_attention" else {} for kind in types]


def windows_of(config: Any) -> list[int]:
    """The sliding window of each layer in tokens; 0: none."""
    types, kwargs = types_of(config)
    return [
        int(more.get("sliding_window") or 0) if kind == "sliding_attention" else 0
        for kind, more in zip(types, kwargs, strict=True)
    ]


def fingerprint_text(config: Any) -> str:
    """What must be equal for keys to mean the same."""
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
             "rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "vocab_size")  # fmt: skip
    return json.dumps({name: getattr(config, name, None) for name in names}, sort_keys=True, default=str)
