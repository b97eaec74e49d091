from __future__ import annotations

from ._library import check, library


class Spec:
    """How tokens are held, in the language of `--kv` (`mikv info --help`): a preset, then what differs from it.

    >>> str(Spec("mikv:keep=0.2"))
    'mikv:keep=0.2'
    >>> str(Spec("mikv", keep=0.2, hi="f16"))
    'mikv:keep=0.2,hi=f16'

    Raises ValueError if the text is no spec; the message says what would do.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str | Spec = "mikv", **changes: object) -> None:
        text = str(text)
        if changes:
            text += ("," if ":" in text else ":") + ",".join(f"{key}={value}" for key, value in changes.items())
        if "\0" in text:
            raise ValueError("a spec contains no NUL")
        check(library.mikv_check_spec(text.encode()))
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"mikv.Spec({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)
