"""How a layer's keys turn with their position, from the model's config: compression uses it."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from .._config import head_dim_of

# Models that turn channels 2i and 2i + 1 together, by a function of another name than rotate_half.
_ADJACENT = {"codegen", "ernie4_5_vl_moe_text", "glm4v_text", "glm_ocr_text", "gptj", "llama4_text"}


def rope_of(config: Any, layer_type: str) -> tuple[list[float] | None, bool]:
    """Radians per position for each pair of channels, and whether pairs are adjacent. None if the model has no RoPE."""
    adjacent = _pairs_are_adjacent(config)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(parameters.get(layer_type), dict):
        parameters = parameters[layer_type]
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if theta is None:
        return None, adjacent
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        try:
            return _scaled(config, kind, layer_type), adjacent
        except Exception as error:  # whatever a version's function wants: compression works without, a little worse
            warnings.warn(f"mikv: RoPE of type {kind} is not used for compression: {error}", stacklevel=2)
            return None, adjacent
    head_dim = head_dim_of(config)
    factor = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    n = int(head_dim * factor)
    return [float(theta) ** (-i / n) for i in range(0, n, 2)], adjacent


def _pairs_are_adjacent(config: Any) -> bool:
    """Whether the model turns channels 2i and 2i + 1 together, as its own function does; others turn i and i + n."""
    if config.model_type in _ADJACENT:
        return True
    modeling = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        rotate = getattr(importlib.import_module(modeling), "rotate_half", None)
    except ImportError:
        return False
    return rotate is not None and float(rotate(torch.arange(4.0))[0]) == -1.0


def _scaled(config: Any, kind: str, layer_type: str) -> list[float]:
    import inspect

    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    function = ROPE_INIT_FUNCTIONS[kind]
    more = {"layer_type": layer_type} if "layer_type" in inspect.signature(function).parameters else {}
    per_layer = any(isinstance(value, dict) for value in (getattr(config, "rope_parameters", None) or {}).values())
    frequencies, _ = function(config, "cpu", **(more if per_layer else {}))
    return [float(x) for x in frequencies]
