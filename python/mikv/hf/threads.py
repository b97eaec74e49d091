"""The threads of torch. Two sets of threads on the same cores wait for each other: torch's spin after each operator."""

from __future__ import annotations

import ctypes
from functools import cache

from .._library import Threads


@cache
def torch_threads() -> Threads | None:
    """The OpenMP that torch has loaded, or None if it is not GCC's."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:
        return None
    for path in sorted(paths, key=lambda p: "/torch" not in p):
        try:
            library = ctypes.CDLL(path)
            functions = [library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads]
        except (OSError, AttributeError):
            continue
        return Threads(*(ctypes.cast(f, ctypes.c_void_p) for f in functions))
    return None
