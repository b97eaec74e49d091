"""The caches under test: mikv specs, real packages, simulations."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from .._cli import split_specs
from .._config import head_dim_of
from ..hf import Cache
from ..rivals import Rival
from ..rivals import parse as parse_rival
from ..spec import Spec
from .panel import exact


class CannotRun(Exception):
    """A peer that cannot run here; the message names cause and remedy."""


@dataclass
class Size:
    """What a cache holds."""

    total: float  #: bytes
    parts: dict[str, float] = field(default_factory=dict)  #: bytes by purpose, where known


def storage_of(*roots: Any) -> int:
    """Bytes of all tensors and arrays that are reachable from objects, each storage once."""
    import numpy as np

    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            if hasattr(x, "__tensor_flatten__"):  # a tensor made of tensors, as quanto's
                names, _ = x.__tensor_flatten__()
                waiting += [getattr(x, name) for name in names]
            elif x.numel():
                storage = x.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(x, np.ndarray):
            base = x
            while isinstance(base.base, np.ndarray):
                base = base.base
            storages[base.ctypes.data] = base.nbytes
        elif isinstance(x, dict):
            waiting += list(x.values())
        elif isinstance(x, (list, tuple, set)):
            waiting += list(x)
        elif isinstance(x, (torch.nn.Module, type)) or callable(x) and not hasattr(x, "__dict__"):
            continue
        elif hasattr(x, "__dict__"):
            waiting += list(vars(x).values())
    return sum(storages.values())


class MikvArm:
    kind = "mikv"

    def __init__(self, spec: str, config: Any, n_threads: int, max_length: int | None) -> None:
        self.name = spec
        self.cache = Cache(spec, config=config, n_threads=n_threads, max_length=max_length)

    def take_prompt(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> None:
        self.attend(layer, module, q, k, v, scale)

    def end_prompt(self) -> None:
        self.cache.compress()

    def attend(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        of_layer = self.cache.layers[layer]
        of_layer.update(k, v)
        return of_layer.attend(module, q, None, scale, None, None, None)

    def size(self) -> Size:
        usage = self.cache.memory_usage()
        names = ("staged", "hi", "lo", "scales", "ids", "scores", "calibration", "slack")
        return Size(usage.total, {name: getattr(usage, name) for name in names})


class LayersArm:
    """A cache made of Transformers' layers, read by "sdpa"."""

    kind = "peer"

    def __init__(self, name: str, layers: list[Any]) -> None:
        self.name, self.layers = name, layers

    def take_prompt(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> None:
        self.layers[layer].update(k, v)

    def end_prompt(self) -> None:
        pass

    def attend(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        keys, values = self.layers[layer].update(k, v)
        return exact(q, keys, values, scale)

    def size(self) -> Size:
        return Size(storage_of(self.layers))


class SimulatedArm(LayersArm):
    kind = "simulated"

    def __init__(self, rival: Rival, n_layers: int) -> None:
        super().__init__(rival.name, [rival.layer() for _ in range(n_layers)])

    def take_prompt(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> None:
        self.layers[layer].prompt(q, k, v)

    def size(self) -> Size:
        counts = [layer.count() for layer in self.layers]
        parts = {name: sum(getattr(c, name) for c in counts) / 8 for name in ("codes", "scales", "window", "fitted")}
        return Size(sum(parts.values()), parts)


class TurboQuantCpuArm:
    """turboquantcpu's LayerCache, which stores and attends. Its patch_model() is not used: attention there goes on to
    read the exact cache, and the compressed one beside it is never read."""

    kind = "peer"

    def __init__(self, name: str, layers: list[Any]) -> None:
        self.name, self.layers = name, layers

    def take_prompt(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> None:
        self.layers[layer].update(*(x[0].transpose(0, 1).contiguous().float() for x in (k, v)))

    def end_prompt(self) -> None:
        pass

    def attend(self, layer: int, module: Any, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
        self.take_prompt(layer, module, q, k, v, scale)
        out, _ = self.layers[layer].compute_attention(q[:, :, 0].float(), scale)
        return out[:, None].to(q.dtype)

    def size(self) -> Size:
        return Size(storage_of([(layer._key_state, layer._val_state) for layer in self.layers]))


class KvpressArm(LayersArm):
    """A press evicts while the model reads the prompt, so it reads the prompt itself."""

    def __init__(self, name: str, press: Any, n_layers: int) -> None:
        super().__init__(name, [DynamicLayer() for _ in range(n_layers)])
        self.press = press

    def read_prompt(self, model: Any, tokens: list[int]) -> None:
        from transformers import DynamicCache

        before = model.config._attn_implementation
        cache = DynamicCache()
        model.set_attn_implementation("sdpa")
        try:
            with torch.no_grad(), self.press(model):
                model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            model.set_attn_implementation(before)
        self.layers = list(cache.layers)
        for layer in self.layers:  # a view of a longer tensor would keep all of it
            layer.keys, layer.values = layer.keys.contiguous(), layer.values.contiguous()


# ------------------------------------------------------------ names


@dataclass(frozen=True)
class Choice:
    """A cache that was asked for by name."""

    name: str
    kind: str  #: mikv, peer, simulated

    def make(self, model: Any, n_threads: int, max_length: int | None = None) -> Any:
        """A fresh arm, for max_length tokens where its size is fixed beforehand. Raises CannotRun."""
        config = model.config.get_text_config(decoder=True)
        n_layers = config.num_hidden_layers
        if self.kind == "mikv":
            return MikvArm(self.name, config, n_threads, max_length)
        if self.kind == "simulated":
            return SimulatedArm(parse_rival(self.name.removeprefix("sim:")), n_layers)
        return _PEERS[_family(self.name)](self.name, config, n_layers)


def _family(name: str) -> str:
    head = name.partition(":")[0]
    return re.sub(r"\d+$", "", head) if head.startswith("quanto") else head


def _options(name: str, text: str, defaults: dict[str, Any]) -> dict[str, Any]:
    chosen = dict(defaults)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise ValueError(f"{name}: {item} is no option; there are {', '.join(defaults)}")
        try:
            chosen[key] = type(defaults[key])(value)
        except ValueError as error:
            raise ValueError(f"{name}: {item} needs a number") from error
    return chosen


def dynamic(name: str, config: Any, n_layers: int) -> LayersArm:
    return LayersArm(name, [DynamicLayer() for _ in range(n_layers)])


def _quanto(name: str, config: Any, n_layers: int) -> LayersArm:
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
        raise CannotRun(f"{name}: the package optimum-quanto is not installed; pip install './python[compare]'")
    from transformers.cache_utils import QuantoQuantizedLayer

    head, _, tail = name.partition(":")
    options = _options(name, tail, {"group": 64, "residual": 128, "axis": 0})
    n_bits = int(head.removeprefix("quanto-int"))

    def layer() -> Any:
        return QuantoQuantizedLayer(
            nbits=n_bits,
            axis_key=options["axis"],
            axis_value=options["axis"],
            q_group_size=options["group"],
            residual_length=options["residual"],
        )

    return LayersArm(name, [layer() for _ in range(n_layers)])


def _turboquantcpu(name: str, config: Any, n_layers: int) -> TurboQuantCpuArm:
    if importlib.util.find_spec("turboquantcpu") is None:
        raise CannotRun(f"{name}: the package turboquantcpu is not installed; pip install turboquantcpu==0.1.0")
    from turboquantcpu.kv_cache import CacheConfig, CompressedKVCache

    options = _options(name, name.partition(":")[2], {"bits": 4, "mode": "prod", "values": "int8"})
    n_heads = config.num_attention_heads
    cache = CompressedKVCache.from_config(
        CacheConfig(
            num_layers=n_layers,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            num_q_heads=n_heads,
            head_dim=head_dim_of(config),
            mode=options["mode"],
            bits=options["bits"],
            value_mode=options["values"],
        )
    )
    return TurboQuantCpuArm(name, [cache.layer(i) for i in range(n_layers)])


def _kvpress(name: str, config: Any, n_layers: int) -> KvpressArm:
    version = importlib.metadata.version("transformers")
    if tuple(int(x) for x in version.split(".")[:2]) >= (5, 3):
        raise CannotRun(
            f"{name}: kvpress wants transformers < 5.3, this environment has {version}; make another environment with "
            "pip install kvpress 'transformers<5.3'"
        )
    if importlib.util.find_spec("kvpress") is None:
        raise CannotRun(f"{name}: the package kvpress is not installed; pip install kvpress 'transformers<5.3'")
    import kvpress

    press_name, _, tail = name.partition(":")[2].partition(":")
    options = _options(name, tail, {"ratio": 0.8})
    found = getattr(kvpress, f"{press_name}Press", None)
    if found is None:
        raise ValueError(f"{name}: kvpress has no {press_name}Press")
    return KvpressArm(name, found(compression_ratio=options["ratio"]), n_layers)


_PEERS = {"dynamic": dynamic, "quanto-int": _quanto, "turboquantcpu": _turboquantcpu, "kvpress": _kvpress}
_KNOWN = "dynamic, quanto-int4, quanto-int2, turboquantcpu, kvpress:PRESS, sim:METHOD-BITS"


def parse_choices(kv: str, peers: str) -> list[Choice]:
    """The caches to measure, without doubles. ValueError for a name that nothing has."""
    choices: list[Choice] = []
    for name in split_specs(kv):
        choices.append(Choice(str(Spec(name)), "mikv"))
    for name in split_specs(peers):
        if name.startswith("sim:"):
            choices.append(Choice(parse_rival(name[4:]).name, "simulated"))
        elif _family(name) not in _PEERS or (
            _family(name) == "quanto-int" and not re.match(r"quanto-int[24](:|$)", name)
        ):
            raise ValueError(f"{name} is no peer; there are {_KNOWN}")
        else:
            choices.append(Choice(name, "peer"))
    unique = list(dict.fromkeys(choices))
    if not unique:
        raise ValueError("no cache to measure; name some with --kv or --peers")
    return unique
