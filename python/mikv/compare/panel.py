"""Panel: several caches behind one model. A batch has one row per cache, and attention sends each row to its own.

The model's weights are read once per step for all caches, and the step under test is the same for all. The prompt is
read once, exactly, and recorded: queries, keys and values of every layer. Each cache then takes the record, which is what
it would have got from reading the prompt itself with exact attention.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "mikv_compare"


class Arm(Protocol):
    """One cache under test, for one sequence."""

    name: str

    def take_prompt(self, layer: int, module: torch.nn.Module, q: Any, k: Any, v: Any, scale: float) -> None:
        """A layer of a prompt that was read exactly; layers come in order. [1, heads, n, channels]."""

    def end_prompt(self) -> None:
        """The last layer was taken."""

    def attend(self, layer: int, module: torch.nn.Module, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        """Takes a token and attends: [1, heads, 1, channels] to [1, 1, heads, channels]."""


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool = False) -> torch.Tensor:
    """Transformers' "sdpa": [B, heads, n, channels] to [B, n, heads, channels]."""
    out = scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


class Record:
    """A prompt's queries, keys and values by layer."""

    name = "record"

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, float]] = {}

    def attend(self, layer: int, module: torch.nn.Module, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        self.layers[layer] = (module, q, k, v, scale)
        return exact(q, k, v, scale, causal=True)

    def give(self, arm: Arm) -> None:
        for layer, (module, q, k, v, scale) in sorted(self.layers.items()):
            arm.take_prompt(layer, module, q, k, v, scale)
        arm.end_prompt()


class Panel(Cache):  # type: ignore[misc]
    """What the model takes for its cache."""

    def __init__(self, arms: Sequence[Any], length: int, n_layers: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(n_layers)])
        self.arms = list(arms)
        self.length = length
        self.seconds: list[float] = [0.0] * len(self.arms)  #: in the caches, of the last step
        self.failed: dict[int, str] = {}  #: arms that raised, and what

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        n = query_length.shape[0] if torch.is_tensor(query_length) else query_length
        return self.length + int(n), 0

    def attend(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        rows = []
        for i, arm in enumerate(self.arms):
            row = slice(i, i + 1)
            start = time.perf_counter()
            if i in self.failed:
                out = torch.zeros_like(q[row].transpose(1, 2))
            else:
                try:
                    out = arm.attend(layer, module, q[row], k[row], v[row], scale)
                except Exception as error:
                    self.failed[i] = f"{type(error).__name__}: {error}"
                    out = torch.zeros_like(q[row].transpose(1, 2))
            self.seconds[i] += time.perf_counter() - start
            rows.append(out)
        return torch.cat(rows)


_open: list[Panel] = []


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if kwargs.get("sliding_window") or kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise ValueError(
            f"{type(module).__name__} has windows, softcap or sinks; mikv.compare measures full attention only"
        )
    return _open[-1].attend(module.layer_idx, module, query, key, value, scale), None


def _mask(*args: Any, **kwargs: Any) -> None:
    return None


def register() -> None:
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)


class Bench:
    """A model with the panel's attention."""

    def __init__(self, model: Any) -> None:
        register()
        self.model = model
        # Its name from Transformers 5.24 on; the old one warns there.
        self.cache_argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self.config = model.config.get_text_config(decoder=True)
        model.set_attn_implementation(ATTENTION)
        model.eval()

    def forward(self, panel: Panel, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [rows, n]; log probabilities after the last, [rows, vocabulary], in float64."""
        panel.seconds = [0.0] * len(panel.arms)
        n = tokens.shape[1]
        positions = torch.arange(panel.length, panel.length + n)[None].expand(tokens.shape[0], -1)
        _open.append(panel)
        try:
            with torch.no_grad():
                out = self.model(
                    input_ids=tokens,
                    position_ids=positions,
                    use_cache=True,
                    logits_to_keep=1,
                    **{self.cache_argument: panel},
                )
        finally:
            _open.pop()
        panel.length += n
        return torch.log_softmax(out.logits[:, -1].double(), -1)

    def read(self, tokens: list[int]) -> tuple[Record, torch.Tensor]:
        """Reads a prompt exactly. The record, and log probabilities after it."""
        record = Record()
        panel = Panel([record], 0, self.config.num_hidden_layers)
        log_p = self.forward(panel, torch.tensor([tokens]))
        if panel.failed:
            raise ValueError(panel.failed[0])
        return record, log_p[0]

    def panel(self, arms: Sequence[Any], length: int) -> Panel:
        return Panel(arms, length, self.config.num_hidden_layers)
