"""mikv: a KV cache in three tiers.

The tokens that an importance policy would keep stay in high precision. Those that it would evict are kept in few bits.
Attention runs over both (MiKV, arXiv 2402.18096).

``mikv.Context``     the cache of a model instance, as an engine talks to it (NumPy or CPU torch tensors)
``mikv.LayerCache``  one attention layer: put tokens, attend
``mikv.Spec``        how tokens are held: "mikv", "mikv:keep=0.2,hi=f16", "h2o", "full"
``mikv.hf``          the cache inside of Hugging Face Transformers (needs torch and transformers)
"""

from ._library import library_version
from ._version import __version__
from .context import Context, LayerShape, MemoryUsage, Step, Tier, TokenStates
from .errors import Damaged, Error, Mismatch, OverBudget, Unsupported
from .layer_cache import LayerCache
from .spec import Spec

__all__ = [
    "Context",
    "Damaged",
    "Error",
    "LayerCache",
    "LayerShape",
    "MemoryUsage",
    "Mismatch",
    "OverBudget",
    "Spec",
    "Step",
    "Tier",
    "TokenStates",
    "Unsupported",
    "__version__",
    "library_version",
]
