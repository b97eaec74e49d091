"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Writes a file beside `path`, syncs it and puts it in its place: nobody reads half of it. Text is UTF-8.

    private: the file has mode 0600.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)  # of a killed process of this number: its mode may be another
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # the name is known: it may be somebody else's link
        with open(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
