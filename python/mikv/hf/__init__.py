"""mikv inside of Hugging Face Transformers.

>>> import mikv.hf                                                                     # doctest: +SKIP
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="mikv")     # doctest: +SKIP
>>> cache = mikv.hf.Cache("mikv", config=model.config)                                 # doctest: +SKIP
>>> model.generate(**inputs, past_key_values=cache)                                    # doctest: +SKIP

The import registers the attention "mikv" and its mask. docs/python.md says what works with which version.
"""

from .attention import ATTENTION, register
from .cache import Cache, Layer

register()

__all__ = ["ATTENTION", "Cache", "Layer"]
