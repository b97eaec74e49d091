"""Exceptions. A bad argument is a ValueError, no memory a MemoryError, a file an OSError; the rest are mikv.Error."""

from __future__ import annotations


class Error(RuntimeError):
    """The cache cannot do what was asked. The message names the cause and the remedy."""


class OverBudget(Error, MemoryError):
    """The step does not fit the budget. Free sequences, take a smaller batch or raise the budget."""


class Mismatch(Error, ValueError):
    """Saved bytes are whole, but of another model, cache or context."""


class Unsupported(Error, NotImplementedError):
    """The call needs something that this library does not have."""


class Damaged(Error, ValueError):
    """Saved bytes are cut short, changed or of an unknown version."""


#: By the number of mikv_error (mikv.h).
BY_CODE: dict[int, type[Exception]] = {
    1: ValueError,
    2: MemoryError,
    3: OverBudget,
    4: Damaged,
    5: Mismatch,
    6: Unsupported,
    7: OSError,
    8: Error,
}
