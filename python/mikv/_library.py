"""libmikv.so by ctypes: the structures and functions of mikv.h that the package uses. Calls release the GIL."""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)

from .errors import BY_CODE, Error


class Threads(Structure):
    """Threads of the caller's OpenMP: GOMP_parallel, omp_get_thread_num, omp_get_num_threads."""

    _fields_ = [("parallel", c_void_p), ("thread", c_void_p), ("n_threads", c_void_p)]


class ContextOptions(Structure):
    _fields_ = [
        ("size", c_size_t), ("spec", c_char_p), ("n_sequences", c_uint32), ("n_cells", c_uint32),
        ("n_ubatch", c_uint32), ("n_threads", c_uint32), ("unified", c_int32), ("model", c_char_p),
        ("fingerprint", c_uint64), ("log", c_void_p), ("log_data", c_void_p),
        ("threads", POINTER(Threads)),
    ]  # fmt: skip


class LayerShape(Structure):
    _fields_ = [("n_heads", c_uint32), ("n_kv_heads", c_uint32), ("head_dim_k", c_uint32), ("head_dim_v", c_uint32)]


class AttendArgs(Structure):
    _fields_ = [
        ("size", c_size_t), ("q", c_void_p), ("q_token_stride", c_size_t), ("q_head_stride", c_size_t),
        ("out", c_void_p), ("out_token_stride", c_size_t), ("out_head_stride", c_size_t), ("n_tokens", c_uint32),
        ("sequence", c_uint32), ("scale", c_float), ("softcap", c_float), ("sinks", c_void_p),
        ("mask_slopes", c_void_p), ("mask_type", c_int), ("mask", c_void_p), ("mask_stride_bytes", c_size_t),
        ("n_mask_cells", c_uint32),
    ]  # fmt: skip


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p), ("type", c_int), ("sequence_stride", c_size_t), ("token_stride", c_size_t),
        ("head_stride", c_size_t),
    ]  # fmt: skip


class TensorCall(Structure):
    _fields_ = [
        ("size", c_size_t), ("sequences", c_void_p), ("n_sequences", c_size_t), ("n_tokens", c_uint32),
        ("scale", c_float), ("softcap", c_float), ("sinks", c_void_p), ("q", Tensor), ("k", Tensor), ("v", Tensor),
        ("out", Tensor),
    ]  # fmt: skip


#: Types of a Tensor.
F32, F16, BF16 = range(3)


class MemoryUsage(Structure):
    _fields_ = [
        ("size", c_size_t), ("total", c_uint64), ("staged", c_uint64), ("hi", c_uint64), ("lo", c_uint64),
        ("scales", c_uint64), ("ids", c_uint64), ("scores", c_uint64), ("calibration", c_uint64),
        ("slack", c_uint64), ("n_elements", c_uint64), ("peak", c_uint64), ("bits_per_element", c_double),
    ]  # fmt: skip


#: Called with one line of the library's log.
Log = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)

_SIGNATURES = {
    "mikv_version": (c_char_p, []),
    "mikv_last_error_message": (c_char_p, []),
    "mikv_check_spec": (c_int, [c_char_p]),
    "mikv_context_options_init": (None, [POINTER(ContextOptions)]),
    "mikv_context_create": (c_int, [POINTER(ContextOptions), POINTER(c_void_p)]),
    "mikv_context_free": (None, [c_void_p]),
    "mikv_context_add_layer": (c_int, [c_void_p, c_int32, POINTER(LayerShape), c_uint32]),
    "mikv_context_set_rope": (c_int, [c_void_p, c_int32, c_void_p, c_uint32, c_int32]),
    "mikv_context_begin_step": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "mikv_context_store": (c_int, [c_void_p, c_int32, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t]),
    "mikv_attend_args_init": (None, [POINTER(AttendArgs)]),
    "mikv_context_attend_all": (c_int, [c_void_p, c_int32, c_void_p, c_size_t]),
    "mikv_tensor_call_init": (None, [POINTER(TensorCall)]),
    "mikv_context_attend_tensors": (c_int, [c_void_p, c_int32, POINTER(TensorCall)]),
    "mikv_context_end_step": (c_int, [c_void_p, c_int32]),
    "mikv_context_remove": (c_int, [c_void_p, c_int32, c_int32, c_int32]),
    "mikv_context_copy": (c_int, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "mikv_context_clear": (None, [c_void_p]),
    "mikv_context_last_position": (c_int32, [c_void_p, c_int32]),
    "mikv_context_compress": (c_int, [c_void_p]),
    "mikv_context_save": (c_int, [c_void_p, c_int32, c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_size_t)]),
    "mikv_context_load": (c_int, [c_void_p, c_int32, c_char_p, c_size_t]),
    "mikv_free": (None, [c_void_p]),
    "mikv_memory_usage_init": (None, [POINTER(MemoryUsage)]),
    "mikv_context_memory_usage": (c_int, [c_void_p, POINTER(MemoryUsage)]),
    "mikv_context_set_budget": (None, [c_void_p, c_uint64]),
    "mikv_context_spec": (c_char_p, [c_void_p]),
    "mikv_context_lowered": (c_int, [c_void_p, c_void_p, c_size_t, POINTER(c_size_t)]),
    "mikv_context_tokens": (c_int, [c_void_p, c_int32, c_uint32, c_int32, c_void_p, c_size_t, POINTER(c_size_t)]),
}


def _load() -> ctypes.CDLL:
    path = os.environ.get("MIKV_LIBRARY") or os.path.join(os.path.dirname(__file__), "libmikv.so")
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"cannot load {path}: {error}; install the package again, or set MIKV_LIBRARY") from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise ImportError(f"{path} has no {name}: it is older than this package; install both anew") from error
        function.restype, function.argtypes = result, arguments
    return library


library = _load()


def library_version() -> str:
    """Version of the C library."""
    return str(library.mikv_version().decode())


def check(code: int) -> None:
    """Raises what a function of mikv.h returned, with the library's message."""
    if code:
        message = library.mikv_last_error_message().decode(errors="replace")
        raise BY_CODE.get(code, Error)(message)
