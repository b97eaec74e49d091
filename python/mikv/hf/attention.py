"""The attention "mikv" and its mask, as Transformers calls them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from ..errors import Unsupported
from .cache import layer_of

#: The name of the attention, for attn_implementation= and set_attn_implementation().
ATTENTION = "mikv"

# Arguments that change what attention means, and that the cache does not have.
_REFUSED = ("position_bias", "head_mask", "relative_position", "alibi")


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query: [B, heads, n, D]; key and value are the new tokens' alone. Returns [B, n, heads, D], and no weights.

    dropout is the sixth parameter: kvpress passes it by position.
    """
    layer = layer_of(key, kwargs)
    if layer is None:
        raise Unsupported(
            'attention "mikv" reads a mikv cache; pass past_key_values=mikv.hf.Cache("mikv", config=model.config), or '
            'call model.set_attn_implementation("sdpa")'
        )
    if torch.compiler.is_compiling():
        raise Unsupported('attention "mikv" does not work under torch.compile; compile other parts, or use "sdpa"')
    if dropout:
        raise Unsupported("dropout in attention: the cache is for inference; call model.eval()")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise Unsupported("gradients through the cache: it is for inference; call the model under torch.no_grad()")
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise Unsupported(f"{name} of {type(module).__name__} is not supported by the attention mikv")
    return layer.attend(module, query, attention_mask, scaling, sliding_window, softcap, s_aux), None


def mask(
    batch_size: int | None = None,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The two-dimensional padding mask if something is padded, else None: the cache knows what is causal.

    Never a mask of all pairs of tokens, which would have gigabytes at 32k.
    """
    if not _is_causal(mask_function):
        raise Unsupported(
            "a mask that is neither causal, a sliding window nor padding (packed sequences, blocks that see each "
            'other): the attention mikv does not have it; use "sdpa"'
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask


def _is_causal(function: Any) -> bool:
    """Whether a mask function of Transformers is the causal one, or that and a sliding window."""
    if function is causal_mask_function:
        return True
    name = getattr(function, "__qualname__", "")
    if name.startswith("sliding_window_overlay"):
        return True
    if name.startswith("and_masks"):
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return all(_is_causal(f) for f in cells["mask_functions"].cell_contents)
    return False


def register() -> None:
    """Makes the names known to Transformers. Importing mikv.hf does it."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, mask)
