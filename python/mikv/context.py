"""mikv.Context: the KV cache of one model instance, as an engine talks to it. The same as mikv.h, whose comments say more."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _library as c
from ._library import check, library
from .errors import Error
from .spec import Spec

Floats = npt.NDArray[np.float32]

#: One token of a step, as mikv_token.
TOKEN = np.dtype([("sequence", np.int32), ("position", np.int32), ("output", np.int32), ("punctuation", np.int32)])
_TOKEN_STATE = np.dtype([("position", np.int32), ("tier", np.int32), ("score", np.float32)])


class LayerShape(NamedTuple):
    """Heads of an attention layer. n_heads is a multiple of n_kv_heads; dimensions are multiples of 8, up to 512."""

    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int


class Tier(enum.IntEnum):
    """Where a token's keys and values are."""

    STAGED = 0  #: not compressed yet
    HI = 1  #: important: in high precision
    LO = 2  #: what the policy would evict: in few bits
    EVICTED = 3  #: nowhere, under a policy that drops what is not important


class TokenStates(NamedTuple):
    """The tokens of a sequence in one KV head, by position."""

    position: npt.NDArray[np.int32]
    tier: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]


@dataclass(frozen=True)
class MemoryUsage:
    """Bytes that a context holds, measured. total is the sum of staged .. slack."""

    total: int
    staged: int
    hi: int
    lo: int
    scales: int
    ids: int
    scores: int
    calibration: int
    slack: int
    n_elements: int
    peak: int
    bits_per_element: float


def available_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def as_floats(x: Any, name: str, n_dimensions: int) -> Floats:
    """A view of an array or CPU tensor of float32, without a copy. ValueError if it is anything else."""
    if not isinstance(x, np.ndarray):
        device = getattr(x, "device", None)
        if device is not None and getattr(device, "type", "cpu") != "cpu":
            raise ValueError(f"{name} is on {device}; move it to the CPU")
        if hasattr(x, "detach"):
            x = x.detach()
        if not hasattr(x, "__dlpack__"):
            raise ValueError(f"{name} is a {type(x).__name__}; give a NumPy array or a CPU tensor")
        dtype = str(getattr(x, "dtype", "float32"))
        if "float32" not in dtype:
            raise ValueError(f"{name} has {dtype}; convert it to float32")
        x = np.from_dlpack(x)
    if x.dtype != np.float32:
        raise ValueError(f"{name} has {x.dtype}; convert it to float32")
    if x.ndim != n_dimensions:
        raise ValueError(f"{name} has {x.ndim} dimensions; {n_dimensions} are needed")
    return x  # type: ignore[no-any-return]


def _refuse_non_finite(x: Floats, name: str) -> None:
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has values that are not finite (NaN or infinity)")


def _rows(x: Floats, name: str, n_heads: int, head_dim: int) -> tuple[Floats, int]:
    """[tokens][heads][channels] whose tokens are rows without holes, and the stride between rows in floats."""
    if x.shape[1:] != (n_heads, head_dim):
        raise ValueError(f"{name} has shape {list(x.shape)}; the layer wants [tokens, {n_heads}, {head_dim}]")
    if x.strides[1:] != (head_dim * 4, 4) or x.strides[0] % 4 or x.strides[0] < n_heads * head_dim * 4:
        x = np.ascontiguousarray(x)
    return x, max(x.strides[0] // 4, n_heads * head_dim)


class Context:
    """Keys and values of a model's layers and sequences, and attention over them.

    spec         how tokens are held: a Spec or its text
    n_sequences  1 to 4096
    n_cells      tokens per sequence, or of all together if unified
    n_ubatch     tokens that pass through a layer at once
    n_threads    of attention and compression; None: all CPUs that the process may use
    unified      sequences share one buffer of cells, and prefixes that are copied are stored once
    model        in words, part of saved states
    fingerprint  of all that must be equal for a saved state to mean the same
    log          gets one line at a time
    threads      another library's threads to use (mikv.hf takes those of torch); None: the context's own

    A context is used by one thread at a time: a second one gets an Error. Calls release the GIL.

    >>> import numpy as np
    >>> context = Context("mikv", n_cells=1024)
    >>> context.add_layer(0, LayerShape(4, 2, 64, 64))
    >>> def random(heads): return np.random.rand(300, heads, 64).astype(np.float32)
    >>> with context.step([(0, 300)]) as step:
    ...     out = step.attend(0, random(4), random(2), random(2))
    >>> out.shape
    (300, 4, 64)
    """

    def __init__(
        self,
        spec: Spec | str = "mikv",
        *,
        n_sequences: int = 1,
        n_cells: int = 4096,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        unified: bool = False,
        model: str = "",
        fingerprint: int = 0,
        budget: int = 0,
        log: Callable[[str], None] | None = None,
        threads: c.Threads | None = None,
    ) -> None:
        self._handle = ctypes.c_void_p()
        self._lock = threading.Lock()
        self.asked = spec if isinstance(spec, Spec) else Spec(spec)
        self.n_sequences, self.n_cells, self.n_ubatch = int(n_sequences), int(n_cells), int(n_ubatch)
        self.n_threads = available_threads() if n_threads is None else int(n_threads)
        for name in ("n_sequences", "n_cells", "n_ubatch", "n_threads"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 1 on")
        options = c.ContextOptions()
        library.mikv_context_options_init(options)
        options.spec = str(self.asked).encode()
        options.n_sequences, options.n_cells = self.n_sequences, self.n_cells
        options.n_ubatch, options.n_threads = self.n_ubatch, self.n_threads
        options.unified = int(unified)
        options.model = model.encode(errors="replace").replace(b"\0", b"?")
        options.fingerprint = fingerprint & (1 << 64) - 1
        self._log = c.Log(lambda line, _: log(line.decode(errors="replace"))) if log else None
        if self._log:
            options.log = ctypes.cast(self._log, ctypes.c_void_p)
        if threads is not None:
            options.threads = ctypes.pointer(threads)
        check(library.mikv_context_create(options, ctypes.byref(self._handle)))
        self.shapes: dict[int, LayerShape] = {}
        self._usage = c.MemoryUsage()
        if budget:
            self.set_budget(budget)

    def close(self) -> None:
        """Frees everything now. Further calls raise ValueError. Error: another thread is in a call."""
        if not self._lock.acquire(blocking=False):
            raise Error("the context is in use by another thread; close it when that call has returned")
        try:
            handle, self._handle = self._handle, ctypes.c_void_p()
            if handle:
                library.mikv_context_free(handle)
        finally:
            self._lock.release()

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at the interpreter's exit contextlib is gone
            self.close()
        except Exception:
            pass

    @contextlib.contextmanager
    def _mine(self) -> Iterator[ctypes.c_void_p]:
        """The handle, for this thread alone."""
        if not self._lock.acquire(blocking=False):
            raise Error("the context is in use by another thread; give each thread a context of its own")
        try:
            if not self._handle:
                raise ValueError("the context is closed")
            yield self._handle
        finally:
            self._lock.release()

    # ------------------------------------------------------------ layers

    def add_layer(
        self,
        layer: int,
        shape: LayerShape | Sequence[int],
        *,
        window: int = 0,
        rope: Sequence[float] | None = None,
        rope_adjacent: bool = False,
    ) -> None:
        """Declares a layer before its first step.

        window: tokens that a query sees, 0 for all. rope: pair i of channels turns by rope[i] radians per position;
        pairs are channels 2i and 2i + 1 if rope_adjacent, else i and i + len(rope). Compression uses it.
        """
        shape = LayerShape(*map(int, shape))
        with self._mine() as handle:
            check(library.mikv_context_add_layer(handle, layer, c.LayerShape(*shape), window))
            if rope is not None:
                angles = np.ascontiguousarray(rope, np.float32)
                check(library.mikv_context_set_rope(handle, layer, angles.ctypes.data, angles.size, int(rope_adjacent)))
            self.shapes[layer] = shape

    # ------------------------------------------------------------ steps

    @contextlib.contextmanager
    def step(
        self, runs: Sequence[tuple[int, int]], *, outputs: str = "last", punctuation: npt.ArrayLike | None = None
    ) -> Iterator[Step]:
        """A step of some tokens: runs are (sequence, n tokens), which follow what the sequence holds.

        outputs: which tokens' logits are wanted: "last" of each run (a prompt ends with it), "all" (a draft, or a text
        whose probabilities are measured) or "none" (the beginning of a prompt). punctuation: of each token of the runs,
        true if its text is punctuation, which `fastgen` has a set of. If the block raises, the tokens are forgotten.
        """
        if outputs not in ("last", "all", "none"):
            raise ValueError(f'outputs is {outputs!r}; give "last", "all" or "none"')
        tokens = np.zeros(sum(n for _, n in runs), TOKEN)
        if punctuation is not None:
            marks = np.asarray(punctuation, dtype=bool)
            if marks.shape != tokens.shape:
                raise ValueError(
                    f"punctuation has the shape {marks.shape}; give one value for each of {tokens.size} tokens"
                )
            tokens["punctuation"] = marks
        at = 0
        for sequence, n in runs:
            run = tokens[at : at + n]
            run["sequence"] = sequence
            run["position"] = np.arange(n) + self.length(sequence)
            run["output"] = outputs == "all"
            if n and outputs == "last":
                run["output"][-1] = 1
            at += n
        self.begin_step(tokens)
        step = Step(self, [(int(sequence), int(n)) for sequence, n in runs])
        try:
            yield step
        except BaseException:
            with contextlib.suppress(Exception):
                self.end_step(done=False)
            raise
        self.end_step()

    def begin_step(self, tokens: npt.NDArray[Any]) -> None:
        """Plans a step and makes room for it; tokens: an array of TOKEN. step() is easier."""
        tokens = np.ascontiguousarray(tokens, TOKEN)
        with self._mine() as handle:
            check(library.mikv_context_begin_step(handle, tokens.ctypes.data, len(tokens), None, 0))

    def store_and_attend(
        self,
        layer: int,
        n_tokens: int,
        k: int,
        k_stride: int,
        v: int,
        v_stride: int,
        calls: ctypes.Array[c.AttendArgs],
        n_calls: int,
    ) -> None:
        """Keeps K and V of the step's next tokens, and attends to them and all before (mikv_context_store, _attend_all).

        k and v are addresses, strides are in floats. Step.attend() is easier.
        """
        with self._mine() as handle:
            check(library.mikv_context_store(handle, layer, n_tokens, k, k_stride, v, v_stride))
            check(library.mikv_context_attend_all(handle, layer, calls, n_calls))

    def attend_tensors(self, layer: int, call: c.TensorCall) -> None:
        """Keeps K and V of the step's next tokens, and attends, on tensors as they are (mikv_context_attend_tensors)."""
        with self._mine() as handle:
            check(library.mikv_context_attend_tensors(handle, layer, call))

    def end_step(self, done: bool = True) -> None:
        """Ends the step; done=False forgets its tokens."""
        with self._mine() as handle:
            check(library.mikv_context_end_step(handle, int(done)))

    # ------------------------------------------------------------ sequences

    def length(self, sequence: int = 0) -> int:
        """Tokens of the sequence: its last position plus one."""
        with self._mine() as handle:
            return int(library.mikv_context_last_position(handle, sequence)) + 1

    def remove(self, sequence: int, first: int = -1, last: int = -1) -> None:
        """Forgets positions first <= p < last; negative: from the beginning, to the end."""
        with self._mine() as handle:
            check(library.mikv_context_remove(handle, sequence, first, last))

    def copy(self, source: int, target: int) -> None:
        """Lets `target` hold what `source` holds."""
        with self._mine() as handle:
            check(library.mikv_context_copy(handle, source, target, -1, -1))

    def clear(self) -> None:
        """Forgets everything."""
        with self._mine() as handle:
            library.mikv_context_clear(handle)

    def compress(self) -> None:
        """Compresses what waits in f16, of sequences with at least 256 tokens: the end of a prompt."""
        with self._mine() as handle:
            check(library.mikv_context_compress(handle))

    # ------------------------------------------------------------ states

    def save(self, sequence: int = -1) -> bytes:
        """A sequence, or all (-1), as bytes: tiers as they are stored (docs/file-format.md)."""
        memory, n_bytes = ctypes.c_void_p(), ctypes.c_size_t()
        with self._mine() as handle:
            check(library.mikv_context_save(handle, sequence, None, 0, ctypes.byref(memory), ctypes.byref(n_bytes)))
            try:
                return ctypes.string_at(memory, n_bytes.value)
            finally:
                library.mikv_free(memory)

    def load(self, saved: bytes, sequence: int = -1) -> None:
        """Replaces what the sequence held. The bytes may come from anywhere: all are verified first."""
        with self._mine() as handle:
            check(library.mikv_context_load(handle, sequence, bytes(saved), len(saved)))

    # ------------------------------------------------------------ sizes

    @property
    def spec(self) -> str:
        """The spec that was asked for, in full."""
        with self._mine() as handle:
            return str(library.mikv_context_spec(handle).decode())

    def memory_usage(self) -> MemoryUsage:
        """What the context holds now, measured."""
        with self._mine() as handle:
            library.mikv_memory_usage_init(self._usage)
            check(library.mikv_context_memory_usage(handle, self._usage))
            return MemoryUsage(**{field.name: getattr(self._usage, field.name) for field in fields(MemoryUsage)})

    def set_budget(self, n_bytes: int) -> None:
        """The most bytes that the context may hold, from the next step on; 0: no limit."""
        if n_bytes < 0:
            raise ValueError("a budget is not negative")
        with self._mine() as handle:
            library.mikv_context_set_budget(handle, n_bytes)

    def lowered(self) -> list[int]:
        """Sequences of which a budget has lowered a part below the spec."""
        n, sequences = ctypes.c_size_t(), np.zeros(self.n_sequences, np.int32)
        with self._mine() as handle:
            check(library.mikv_context_lowered(handle, sequences.ctypes.data, len(sequences), ctypes.byref(n)))
        return [int(s) for s in sequences[: n.value]]

    def tokens(self, layer: int, kv_head: int, sequence: int = 0) -> TokenStates:
        """In which tier each token of a sequence is, in one KV head of a layer. Slow: for pictures and tests."""
        n = ctypes.c_size_t()
        with self._mine() as handle:
            check(library.mikv_context_tokens(handle, layer, kv_head, sequence, None, 0, ctypes.byref(n)))
            states = np.zeros(n.value, _TOKEN_STATE)
            check(
                library.mikv_context_tokens(
                    handle, layer, kv_head, sequence, states.ctypes.data, len(states), ctypes.byref(n)
                )
            )
        return TokenStates(states["position"].copy(), states["tier"].copy(), states["score"].copy())

    def __repr__(self) -> str:
        state = f"{len(self.shapes)} layers" if self._handle else "closed"
        return f"mikv.Context({str(self.asked)!r}, n_sequences={self.n_sequences}, n_cells={self.n_cells}: {state})"

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Step:
    """A step of a context, made by Context.step(): one attend() for each layer."""

    def __init__(self, context: Context, runs: list[tuple[int, int]]) -> None:
        self._context, self._runs = context, runs

    def attend(self, layer: int, q: Any, k: Any, v: Any, *, scale: float | None = None, softcap: float = 0.0) -> Floats:
        """Keeps K and V, and returns softmax(scale * q.k) v over all that each token's sequence holds up to it.

        q: [tokens][n_heads][head_dim_k]; k, v: [tokens][n_kv_heads][...], in the order of the step's runs, float32,
        RoPE applied. scale: 1 / sqrt(head_dim_k) if None. Returns [tokens][n_heads][head_dim_v].
        Raises ValueError on another dtype, shape or device, or on values that are not finite.
        """
        context = self._context
        if layer not in context.shapes:
            raise ValueError(f"layer {layer} is not known; declare it by add_layer()")
        shape = context.shapes[layer]
        n_tokens = sum(n for _, n in self._runs)
        q, k, v = as_floats(q, "q", 3), as_floats(k, "k", 3), as_floats(v, "v", 3)
        for x, name in ((q, "q"), (k, "k"), (v, "v")):
            if len(x) != n_tokens:
                raise ValueError(f"{name} has {len(x)} tokens; the step has {n_tokens}")
            _refuse_non_finite(x, name)
        k, k_stride = _rows(k, "k", shape.n_kv_heads, shape.head_dim_k)
        v, v_stride = _rows(v, "v", shape.n_kv_heads, shape.head_dim_v)
        if q.shape[1:] != (shape.n_heads, shape.head_dim_k):
            raise ValueError(
                f"q has shape {list(q.shape)}; the layer wants [tokens, {shape.n_heads}, {shape.head_dim_k}]"
            )
        if q.strides[2] != 4 or q.strides[0] % 4 or q.strides[1] % 4 or min(q.strides) < 0:
            q = np.ascontiguousarray(q)
        out = np.zeros((n_tokens, shape.n_heads, shape.head_dim_v), np.float32)
        calls = (c.AttendArgs * max(1, len(self._runs)))()
        at = 0
        for call, (sequence, n) in zip(calls, self._runs, strict=False):
            library.mikv_attend_args_init(call)
            call.q, call.q_token_stride, call.q_head_stride = q.ctypes.data + at * q.strides[0], *_floats(q)
            call.out, call.out_token_stride, call.out_head_stride = out.ctypes.data + at * out.strides[0], *_floats(out)
            call.n_tokens, call.sequence = n, sequence
            call.scale = shape.head_dim_k**-0.5 if scale is None else scale
            call.softcap = softcap
            at += n
        context.store_and_attend(
            layer, n_tokens, k.ctypes.data, k_stride, v.ctypes.data, v_stride, calls, len(self._runs)
        )
        return out


def _floats(x: Floats) -> tuple[int, int]:
    """Strides of tokens and heads, in floats."""
    return x.strides[0] // 4, x.strides[1] // 4
