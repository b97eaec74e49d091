"""Store: what the layers of a Cache share. One mikv.Context, rows of a batch as its sequences, and the open step.

Transformers passes all tokens of a forward pass through one layer after another. A step of the context therefore
begins with the attention of the first layer and ends with that of the last. Positions in the context are places in the
padded batch: padding is not stored, its places stay empty.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from typing import Any

import numpy as np
import torch

from ..context import TOKEN, Context, LayerShape, MemoryUsage, TokenStates
from ..errors import Damaged, Error, Mismatch, Unsupported
from ..spec import Spec
from .forward_pass import AT_ONCE, TYPES, Call, ForwardPass, Scoring, parts, real_tokens
from .layer_types import fingerprint_text, windows_of
from .rope import rope_of
from .threads import torch_threads

#: The most tokens that are taken for a draft; more are the next turn's prompt.
_MOST_DRAFTED = 64
#: max_length where the model's config says nothing.
_MAX_LENGTH = 32768
_NOTHING = np.zeros((0, 0), dtype=bool)


class Store:
    def __init__(self, spec: Spec, config: Any, max_length: int | None, n_threads: int, budget: int) -> None:
        self.spec, self.config, self.n_threads, self.budget = spec, config, n_threads, budget
        self.max_length = int(max_length or getattr(config, "max_position_embeddings", None) or _MAX_LENGTH)
        self.length = 0  #: tokens of a row, padding included
        self.recording = False
        self.rows: list[int] = []  #: by row of the batch: the context's sequence that holds it; equal: not copied yet
        self.context: Context | None = None
        self._layers: list[int] = []
        self._modules: dict[int, Any] = {}
        self._expected: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._step: ForwardPass | None = None
        self._cropped: dict[int, int] = {}  #: layers that were cropped alone, to which length
        self._drafts = False
        self._real = _NOTHING  #: [rows, length]: which places hold a token, not padding
        self._thread: threading.Thread | None = None  #: that is in the middle of a forward pass
        self._call = Call()

    def finish(self, layers: list[int]) -> None:
        """Tells which layers of the model are in tiers."""
        if not layers:
            raise Unsupported(f"{self.config.model_type} has no attention layer that mikv can hold")
        self._layers = layers

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    def options(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "n_threads": self.n_threads, "budget": self.budget}

    # ------------------------------------------------------------ a step

    def expect(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Takes what attention stores when it comes to this layer."""
        for x, name in ((k, "keys"), (v, "values")):
            if not x.is_cpu:
                raise Unsupported(f"{name} on {x.device}: mikv.hf.Cache is for models on the CPU")
            if x.dtype not in TYPES:
                raise Unsupported(f"{name} of {x.dtype}: mikv.hf.Cache takes float32, bfloat16 and float16")
            if x.dim() != 4:
                raise ValueError(f"{name} have {x.dim()} dimensions; [batch, heads, tokens, channels] are needed")
        if k.shape[:3] != v.shape[:3]:
            raise ValueError(f"keys have shape {list(k.shape)}, values {list(v.shape)}")
        thread = threading.current_thread()
        if self._thread is not None and self._thread is not thread and self._thread.is_alive():
            raise Error("another thread is in the middle of a forward pass with this cache; give each thread its own")
        self._thread = thread
        if self._expected:
            before = next(iter(self._expected))
            self._expected.clear()
            self.abandon()
            if before != layer:
                raise Error(
                    f'layer {before} never attended by "mikv"; load the model with attn_implementation="mikv", or call '
                    'model.set_attn_implementation("mikv")'
                )
        self._expected[layer] = (k, v)

    def attend(
        self,
        layer: int,
        module: torch.nn.Module,
        q: torch.Tensor,
        padding: torch.Tensor | None,
        scale: float,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Stores the tokens that were expected and attends: [B, heads, n, D] to [B, n, heads, D]."""
        if layer not in self._expected:
            raise Error(f"layer {layer} attends without new keys; layers that share keys are not supported")
        k, v = self._expected.pop(layer)
        try:
            self._check(layer, module, q, k, v, padding)
            if self._step is not None and layer in self._step.done:
                self.abandon()  # the pass before ended half way
            if self._step is None:
                self._begin(q, k, v, padding)
            logits = sinks.detach().to(torch.float32).contiguous() if sinks is not None else None
            out = self._attend(layer, q, k, v, Scoring(scale, softcap, logits))
        except BaseException:
            self.abandon()
            raise
        step, context = self._open()
        step.done.add(layer)
        if len(step.done) == len(self._layers):
            self._step = self._thread = None
            context.end_step()
            self.length += step.n
            self._real = np.concatenate([self._real, step.places()], axis=1)
        return out

    def _open(self) -> tuple[ForwardPass, Context]:
        if self._step is None or self.context is None:
            raise Error("the forward pass was given up by another use of this cache; start it again")
        return self._step, self.context

    def abandon(self) -> None:
        """Forgets the open step: rows hold what they held before."""
        step, self._step = self._step, None
        self._thread = None
        if step is not None and self.context is not None:
            self.context.end_step(done=False)

    def length_of(self, layer: int) -> int:
        """Tokens that the layer has. Those of an open step count once all layers have them: it may be given up."""
        return self._cropped.get(layer, self.length)

    def _check(
        self,
        layer: int,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        padding: torch.Tensor | None,
    ) -> None:
        known = self._modules.get(layer)
        if known is None:
            self._modules[layer] = weakref.ref(module)
        elif known() is not module:
            raise Mismatch("the cache holds another model's keys; give each model a cache of its own, or reset() it")
        if padding is not None and padding.dim() != 2:
            raise Unsupported("a mask of more than two dimensions; give the padding mask, [batch, tokens]")
        if self.rows and len(self.rows) != q.shape[0]:
            raise ValueError(f"the batch has {q.shape[0]} rows, the cache {len(self.rows)}; reset() it or take another")
        if self._cropped:
            lengths = {self._cropped.get(index, self.length) for index in self._layers}
            raise Error(f"layers were cropped to different lengths ({sorted(lengths)}); crop all of them alike")
        if k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2] or k.shape[3] != q.shape[3]:
            raise ValueError(f"queries have shape {list(q.shape)}, keys {list(k.shape)}")

    def _check_padding(self, padding: torch.Tensor | None, n: int) -> None:
        """What was stored cannot be masked, nor padding unmasked: it was never stored."""
        if padding is None or not self.rows or padding.shape[1] != self.length + n:
            return
        if not np.array_equal(padding[:, : self.length].to(torch.bool).numpy(), self._real):
            raise Unsupported(
                "a padding mask that changes for tokens in the cache; mask them in the pass that stores them, or reset() it"
            )

    def _begin(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor | None) -> None:
        n_rows, n = int(q.shape[0]), int(q.shape[2])
        self._check_padding(padding, n)
        if self.length + n > self.max_length:
            raise ValueError(
                f"the cache is full: {self.length} and {n} more tokens, of {self.max_length}; make it with "
                f"max_length={self.length + n} or more"
            )
        if not self.rows:
            self.rows = list(range(n_rows))
            self._real = np.zeros((n_rows, 0), dtype=bool)
        self._own_rows(q, k, v)
        assert self.context is not None
        real, n_real = real_tokens(padding, n_rows, n)
        # A single token is generated. Several are a prompt, or a draft if some may be taken back.
        draft = (self.recording or self._drafts) and self.length > 0 and n <= _MOST_DRAFTED
        self._drafts = self._drafts and draft
        tokens = np.zeros(sum(n_real), TOKEN)
        at = 0
        places = np.arange(n, dtype=np.int32) + self.length
        for row, which, count in zip(self.rows, real, n_real, strict=True):
            run = tokens[at : at + count]
            run["sequence"] = row
            run["position"] = places[which]
            run["output"] = n == 1 or draft
            if self.recording and count:
                run["output"][-1] = 1
            at += count
        self.context.begin_step(tokens)
        self._step = ForwardPass(n, real, n_real)

    def _own_rows(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Gives every row a sequence of its own, now that rows are written to."""
        if self.context is None:
            shape = LayerShape(int(q.shape[1]), int(k.shape[1]), int(k.shape[3]), int(v.shape[3]))
            self.context = self._declare(self._new_context(len(self.rows)), dict.fromkeys(self._layers, shape))
            return
        if len(set(self.rows)) == len(self.rows):
            return
        if len(self.rows) > self.context.n_sequences:
            self._widen(len(self.rows))
        free = [s for s in range(self.context.n_sequences) if s not in self.rows]
        seen: set[int] = set()
        for i, sequence in enumerate(self.rows):
            if sequence in seen:
                target = free.pop()
                self.context.copy(sequence, target)
                self.rows[i] = target
            seen.add(self.rows[i])

    def _widen(self, n_sequences: int) -> None:
        """Moves what is stored to a context of more sequences."""
        before = self.context
        assert before is not None
        after = self._declare(self._new_context(n_sequences), before.shapes)
        try:
            for sequence in sorted(set(self.rows)):
                after.load(before.save(sequence), sequence)
        except BaseException:
            after.close()  # rows stay where they are
            raise
        self.context = after
        before.close()

    def _new_context(self, n_sequences: int) -> Context:
        return Context(
            self.spec,
            n_sequences=n_sequences,
            n_cells=self.max_length,
            n_ubatch=AT_ONCE,
            n_threads=self.n_threads,
            model=str(getattr(self.config, "name_or_path", "") or self.config.model_type),
            fingerprint=zlib.crc32(fingerprint_text(self.config).encode()),
            budget=self.budget,
            threads=torch_threads(),
        )

    def _declare(self, context: Context, shapes: dict[int, LayerShape]) -> Context:
        """The context, which has these layers then."""
        types = getattr(self.config, "layer_types", None) or ["full_attention"] * self.config.num_hidden_layers
        windows = windows_of(self.config)
        for layer, shape in shapes.items():
            rope, adjacent = rope_of(self.config, types[layer])
            if rope is not None and 2 * len(rope) > shape.head_dim_k:
                rope = None
            context.add_layer(layer, shape, window=windows[layer], rope=rope, rope_adjacent=adjacent)
        return context

    def _attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        step, context = self._open()
        n_rows, n_heads, n, _ = q.shape
        given = (n_heads, k.shape[1], k.shape[3], v.shape[3])
        shape = context.shapes[layer]
        if given != tuple(shape):
            if self.length == 0:
                raise Unsupported(
                    f"layer {layer} has heads {list(given)}, the first layer {list(shape)}: mikv holds layers of one "
                    'shape; use the attention "sdpa"'
                )
            raise Mismatch(f"layer {layer} has heads {list(given)}, the cache {list(shape)}: it is another model's")
        if n != step.n:
            raise Error(f"layer {layer} has {n} tokens, the layers before {step.n}")
        if n_rows * n <= AT_ONCE and not step.any_padding:
            return self._attend_at_once(context, layer, self.rows, q, k, v, scoring)
        out = (torch.zeros if step.any_padding else torch.empty)((n_rows, n, n_heads, shape.head_dim_v), dtype=q.dtype)
        for row, sequence in enumerate(self.rows):
            for some in parts(step.real[row], step.n_real[row]):
                q_some, k_some, v_some = (x[row : row + 1, :, some] for x in (q, k, v))
                out[row, some] = self._attend_at_once(context, layer, [sequence], q_some, k_some, v_some, scoring)[0]
        return out

    def _attend_at_once(
        self,
        context: Context,
        layer: int,
        sequences: list[int],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """At most AT_ONCE tokens, equally many of each sequence."""
        if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        n_rows, n_heads, n, _ = q.shape
        out = torch.empty((n_rows, n, n_heads, v.shape[3]), dtype=q.dtype)
        self._call.fill(sequences, q, k, v, out, scoring)
        context.attend_tensors(layer, self._call.call)
        return out

    # ------------------------------------------------------------ rows and lengths

    def crop(self, layer: int, length: int) -> None:
        """Cuts a layer to `length` tokens. All layers are cut alike: the tokens are removed with the last."""
        self.abandon()
        if length == self.length:
            return
        self._drafts = True
        self._cropped[layer] = length
        if len(self._cropped) < len(self._layers) or len(set(self._cropped.values())) > 1:
            return
        if any(windows_of(self.config)) and self.length - length > _MOST_DRAFTED:
            window = max(windows_of(self.config))
            if self.length > window:
                self._cropped.clear()
                raise Unsupported("cropping more than a draft where windows have forgotten what was before; reset() it")
        self._cropped.clear()
        if self.context is not None:
            for sequence in set(self.rows):
                self.context.remove(sequence, length)
        self.length = length
        self._real = self._real[:, :length]

    def reset(self) -> None:
        self.abandon()
        self._expected.clear()
        self._cropped.clear()
        self._modules.clear()
        self.rows, self.length, self._drafts, self._real = [], 0, False, _NOTHING
        if self.context is not None:
            self.context.close()
            self.context = None

    def select(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was. Copies nothing."""
        self.abandon()
        if not self.rows:
            return
        for row in rows:
            if not -len(self.rows) <= row < len(self.rows):
                raise ValueError(f"row {row} of a cache of {len(self.rows)} rows")
        selected = [self.rows[row] for row in rows]
        if self.context is not None:
            for sequence in set(self.rows) - set(selected):
                self.context.remove(sequence)
        self.rows = selected
        self._real = self._real[rows]

    def compress(self) -> None:
        self.abandon()
        if self.context is not None:
            self.context.compress()

    # ------------------------------------------------------------ sizes and states

    def memory_usage(self) -> MemoryUsage:
        if self.context is None:
            return MemoryUsage(*([0] * 11), 0.0)  # type: ignore[arg-type, call-arg]
        return self.context.memory_usage()

    def tokens(self, layer: int, kv_head: int, row: int) -> TokenStates:
        if self.context is None:
            raise ValueError("the cache holds nothing yet")
        return self.context.tokens(layer, kv_head, self.rows[row])

    def lowered_rows(self) -> list[int]:
        lowered = set(self.context.lowered()) if self.context is not None else set()
        return [i for i, sequence in enumerate(self.rows) if sequence in lowered]

    def save(self) -> tuple[dict[str, Any], bytes]:
        self.abandon()
        if self.context is None:
            return {"rows": [], "length": 0, "shapes": {}}, b""
        sequences = sorted(set(self.rows))
        states = [self.context.save(sequence) for sequence in sequences]
        meta = {
            "rows": [sequences.index(sequence) for sequence in self.rows],
            "length": self.length,
            "padding": [np.flatnonzero(~row).tolist() for row in self._real],
            "shapes": {str(layer): list(shape) for layer, shape in self.context.shapes.items()},
            "sizes": [len(state) for state in states],
        }
        return meta, b"".join(states)

    def load(self, meta: dict[str, Any], tiers: bytes) -> None:
        try:
            rows = [int(row) for row in meta["rows"]]
            length = int(meta["length"])
            padding = [[int(place) for place in row] for row in meta.get("padding", [[]] * len(rows))]
            shapes = {int(layer): LayerShape(*map(int, shape)) for layer, shape in meta["shapes"].items()}
            sizes = [int(size) for size in meta.get("sizes", [])]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a saved cache is damaged: {error}") from error
        if sum(sizes) != len(tiers) or any(s < 0 for s in sizes) or any(not 0 <= r < len(sizes) for r in rows):
            raise Damaged("a saved cache is damaged: its parts do not fit together")
        if len(padding) != len(rows) or any(not 0 <= place < length for row in padding for place in row):
            raise Damaged("a saved cache is damaged: its padding")
        if not rows:
            return
        if sorted(shapes) != sorted(self._layers):
            raise Mismatch(
                f"the cache was saved for a model of {len(shapes)} such layers; this one has {len(self._layers)}"
            )
        if not 0 <= length <= self.max_length:
            raise ValueError(f"the saved cache has {length} tokens; max_length is {self.max_length}")
        self.context = self._declare(self._new_context(len(rows)), shapes)
        at = 0
        for sequence, size in enumerate(sizes):
            self.context.load(tiers[at : at + size], sequence)
            at += size
            if self.context.length(sequence) > length:
                raise Damaged("a saved cache is damaged: it has more tokens than it says")
        self.rows, self.length = rows, length
        self._real = np.ones((len(rows), length), dtype=bool)
        for row, places in enumerate(padding):
            self._real[row, places] = False
