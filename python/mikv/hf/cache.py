"""mikv.hf.Cache: a transformers.Cache whose full and windowed attention layers are in tiers."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import CacheLayerMixin

from .._files import write_whole
from ..context import MemoryUsage, TokenStates
from ..errors import Damaged, Mismatch, Unsupported
from ..spec import Spec
from .layer_types import types_of
from .store import Store

_TAG = "_mikv_layer"
_FORMAT = 1
#: What reading an archive of hostile bytes may raise.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def layer_of(key: torch.Tensor, kwargs: dict[str, Any]) -> Layer | None:
    """The layer whose update() gave `key`, or None."""
    found = kwargs.pop("mikv_layer", None) or getattr(key, _TAG, None)
    return found if isinstance(found, Layer) else None


class Layer(CacheLayerMixin):  # type: ignore[misc]
    """One attention layer of a Cache. update() takes new keys and values; the attention "mikv" stores and reads them."""

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, store: Store, index: int, window: int = 0) -> None:
        self.store, self.index, self.window = store, index, window
        self.is_sliding = window > 0
        self.record_past = False
        self.is_initialized = False

    # ------------------------------------------------------------ a step

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes the new tokens and returns them alone: attention stores them, and reads the tiers."""
        self.store.expect(self.index, key_states, value_states)
        self.is_initialized = True
        # Transformers 5.24 gives attention's arguments; before, the keys themselves carry where they belong.
        if isinstance(kwargs.get("kwargs"), dict):
            kwargs["kwargs"]["mikv_layer"] = self
        else:
            key_states = key_states.view_as(key_states)
            setattr(key_states, _TAG, self)
        return key_states, value_states

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        padding: torch.Tensor | None,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        if sliding_window is not None and sliding_window != self.window:
            raise Unsupported(
                f"layer {self.index} has a window of {sliding_window}, the cache one of {self.window}; make the cache "
                "with config=model.config"
            )
        self.store.recording = self.record_past
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return self.store.attend(self.index, module, query, padding, scale, softcap or 0.0, sinks)

    # ------------------------------------------------------------ what Transformers asks

    def lazy_initialization(self, *states: torch.Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self, *_: Any) -> int:
        return self.store.length_of(self.index)

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name up to 5.2
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        n = query_length.shape[0] if torch.is_tensor(query_length) else query_length  # positions up to 5.2
        return self.get_seq_length() + int(n), 0

    def activate_past_recording(self) -> None:
        """Several tokens at once are a draft from now on, part of which crop() may take back."""
        self.record_past = True

    def crop(self, n: int | torch.Tensor) -> None:
        """Forgets the last -n tokens; a positive n is the new length, as up to Transformers 5.2."""
        n, length = int(n), self.get_seq_length()  # 5.17 gives a tensor
        self.store.crop(self.index, max(0, length + n) if n <= 0 else min(n, length))

    def reset(self) -> None:
        self.store.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise Unsupported("reorder_cache() of one layer: call it on the cache")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise Unsupported("batch_repeat_interleave() of one layer: call it on the cache")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise Unsupported("batch_select_indices() of one layer: call it on the cache")

    def offload(self) -> None:
        """The cache is in the CPU's memory already."""

    def prefetch(self) -> None:
        """As offload()."""

    # kvpress cuts the answer off by `layer.keys = layer.keys[:, :, :n]`.

    @property
    def keys(self) -> _Length | None:
        return _Length(self.get_seq_length()) if self.is_initialized else None

    @keys.setter
    def keys(self, value: _Length | None) -> None:
        if not isinstance(value, _Length):
            raise Unsupported("keys and values that are assigned; only `layer.keys = layer.keys[:, :, :n]` is known")
        self.store.crop(self.index, value.n)

    values = keys

    def __repr__(self) -> str:
        return f"mikv.hf.Layer({self.index}{f', window={self.window}' if self.window else ''})"


class _Length:
    """Stands for a layer's keys where only their number is read or cut: keys[:, :, :n]."""

    def __init__(self, n: int) -> None:
        self.n = n

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (-1, -1, self.n, -1)

    def __getitem__(self, index: Any) -> _Length:
        tokens = index[2] if isinstance(index, tuple) and len(index) > 2 else slice(None)
        if not isinstance(tokens, slice) or tokens.start not in (None, 0) or tokens.step not in (None, 1):
            raise Unsupported("keys of a mikv cache are in tiers; only keys[:, :, :n] is known, which cuts them off")
        return _Length(len(range(self.n)[tokens]))


class Cache(cache_utils.Cache):  # type: ignore[misc]
    """A KV cache in tiers, for `past_key_values=` of generate() and of a model that has the attention "mikv".

    spec        how tokens are held: a mikv.Spec or its text
    config      of the model
    max_length  most tokens of a row; None: the model's max_position_embeddings
    n_threads   of attention and compression; None: as many as torch uses
    budget      the most bytes that the cache may hold; 0: no limit

    Rows of a batch are independent: a padded row is held as it would be alone. Layers that are neither full nor
    windowed attention keep the layers of Transformers. Raises Unsupported, by name, for what cannot be held.
    """

    def __init__(
        self,
        spec: Spec | str = "mikv",
        *,
        config: Any,
        max_length: int | None = None,
        n_threads: int | None = None,
        budget: int = 0,
    ) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise Unsupported(f"{config.model_type} is an encoder-decoder: mikv.hf.Cache is for decoders")
        self.spec = spec if isinstance(spec, Spec) else Spec(spec)
        decoder = config.get_text_config(decoder=True)
        self._store = Store(self.spec, decoder, max_length, n_threads or torch.get_num_threads(), budget)
        super().__init__(layers=list(_layers(self._store, decoder)))
        self._store.finish([layer.index for layer in self.layers if isinstance(layer, Layer)])

    @property
    def _others(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, Layer)]

    # Operations on all layers: those in tiers share one store, which does them once.

    def crop(self, n: int) -> None:
        for layer in self.layers:
            layer.crop(n)

    def reset(self) -> None:
        self._store.reset()
        for layer in self._others:
            layer.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes a copy of row beam_idx[i]. Nothing is copied before one of two equal rows is written to."""
        self._store.select(beam_idx.tolist())
        for layer in self._others:
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._store.select([row for row in range(self._store.n_rows) for _ in range(repeats)])
        for layer in self._others:
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if not self._store.n_rows:
            return
        rows = torch.arange(self._store.n_rows)[indices]  # indices may be a mask
        self._store.select(rows.tolist())
        for layer in self._others:
            layer.batch_select_indices(indices)

    def compress(self) -> None:
        """Compresses a prompt now that would be compressed with the next generated token."""
        self._store.compress()

    # Sizes.

    def memory_usage(self) -> MemoryUsage:
        """Bytes of the layers in tiers, measured."""
        return self._store.memory_usage()

    def tokens(self, layer: int, kv_head: int, row: int = 0) -> TokenStates:
        """In which tier each token of a row is. Positions count padding."""
        return self._store.tokens(layer, kv_head, row)

    def lowered_rows(self) -> list[int]:
        """Rows of which a budget has lowered a part below the spec."""
        return self._store.lowered_rows()

    # States.

    def to_bytes(self) -> bytes:
        """The cache as bytes: a ZIP archive of its shape (JSON) and the tiers as they are stored."""
        if self._others:
            raise Unsupported("saving a cache with layers that are not in tiers")
        meta, tiers = self._store.save()
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("cache.json", json.dumps({"format": _FORMAT, "spec": str(self.spec), **meta}))
            archive.writestr("tiers.bin", tiers)
        return file.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes to_bytes() to a file of mode 0600, which is there whole or not at all."""
        write_whole(Path(path), self.to_bytes(), private=True)

    @classmethod
    def from_bytes(cls, saved: bytes, *, config: Any, spec: Spec | str | None = None, **options: Any) -> Cache:
        """What to_bytes() gave, for the same model; it may be continued under another spec of its kind."""
        try:
            with zipfile.ZipFile(io.BytesIO(saved)) as archive:
                if archive.getinfo("cache.json").file_size > 1 << 24:
                    raise Damaged("a saved cache is damaged: its description is too long")
                meta = json.loads(archive.read("cache.json"))
                if archive.getinfo("tiers.bin").compress_type != zipfile.ZIP_STORED:
                    raise Damaged("a saved cache is damaged: its tiers are packed")
                tiers = archive.read("tiers.bin")
            version, saved_spec = meta["format"], str(meta["spec"])
        except _DAMAGED as error:
            raise Damaged(f"this is no saved cache, or it is damaged: {error}") from error
        if version != _FORMAT:
            raise Mismatch(f"the cache was saved in format {version}; this version knows {_FORMAT}")
        cache = cls(spec or saved_spec, config=config, **options)
        cache._store.load(meta, tiers)
        for layer in cache.layers:
            layer.is_initialized = cache._store.length > 0
        return cache

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Cache:
        """from_bytes() of a file."""
        return cls.from_bytes(Path(path).read_bytes(), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.to_bytes(), self._store.config, self._store.options())

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        twin = _restore(self.to_bytes(), self._store.config, self._store.options())
        for layer, of_twin in zip(self.layers, twin.layers, strict=True):
            of_twin.record_past = layer.record_past
        return twin

    __copy__ = None  # a shallow copy would be the same cache under two names

    def __repr__(self) -> str:
        return f"mikv.hf.Cache({str(self.spec)!r}: {self._store.n_rows} rows of {self._store.length} tokens)"


def _restore(saved: bytes, config: Any, options: dict[str, Any]) -> Cache:
    return Cache.from_bytes(saved, config=config, **options)


def _layers(store: Store, config: Any) -> Iterator[Any]:
    types, kwargs = types_of(config)
    stock = getattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING", None) or getattr(
        cache_utils, "LAYER_TYPE_CACHE_MAPPING", {}
    )
    for index, (kind, more) in enumerate(zip(types, kwargs, strict=True)):
        if kind == "full_attention":
            yield Layer(store, index)
        elif kind == "sliding_attention":
            yield Layer(store, index, int(more["sliding_window"]))
        elif kind in ("linear_attention", "conv", "mamba", "dummy") and kind in stock:
            yield stock[kind](**more)
        else:
            raise Unsupported(
                f"layer {index} of {config.model_type} is of type {kind}; mikv holds full and sliding attention"
            )
