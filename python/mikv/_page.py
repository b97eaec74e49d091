"""One HTML page with all that it needs inside: style, script and data. It loads nothing, and may load nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shlex
import sys
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def build(title: str, body: str, data: Any, *, style: str, scripts: list[str], compiles: bool = False) -> str:
    """The whole page, in ASCII.

    body     is HTML; escape what comes from elsewhere
    data     is JSON, which the script reads from the element #data; it may hold any text
    scripts  run in this order, and no others do: the page's policy names their hashes
    compiles lets scripts make code from text, as Vega's expressions need
    """
    scripts = [escaped_script(script) for script in scripts]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    allowed = " ".join(hashes + (["'unsafe-eval'"] if compiles else []))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
    text = _PAGE.format(
        policy=policy,
        title=html.escape(title),
        style=part("_page.css") + style,
        body=body,
        data=embedded(data),
        scripts="\n".join(f"<script>{s}</script>" for s in scripts),
    )
    return ascii_only(text)


def part(name: str, folder: Path = _FOLDER) -> str:
    """A style or a script that is a file beside the module."""
    return (folder / name).read_text(encoding="ascii")


def embedded(data: Any) -> str:
    """JSON that ends no element, whatever its texts are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def escaped_script(text: str) -> str:
    """The same script in ASCII. It must not end its element."""
    if "</script" in text.lower():
        raise ValueError("a script contains </script")
    units = (c if c < "\x80" else _utf16(c) for c in text)
    return "".join(units)


def _utf16(c: str) -> str:
    raw = c.encode("utf-16-be")
    return "".join(f"\\u{raw[i : i + 2].hex()}" for i in range(0, len(raw), 2))


def ascii_only(text: str) -> str:
    """The same page for any encoding; a surrogate, as of a file name that is no UTF-8, becomes U+FFFD."""
    whole = text.encode("utf-8", "replace" if _has_surrogates(text) else "strict").decode("utf-8")
    return whole.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def command(module: str, arguments: list[str]) -> str:
    """What to type to get the page again."""
    return shlex.join(["python", "-m", module, *arguments])


def footer(command_line: str) -> str:
    from ._version import __version__

    return (
        f"<footer><p>Made by</p><pre><code>{html.escape(command_line)}</code></pre>"
        f"<p>mikv {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}.</p></footer>"
    )


def size(n_bytes: float) -> str:
    """Bytes for people: 812 B, 40.1 KiB, 3.1 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"
