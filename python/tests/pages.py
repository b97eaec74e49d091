"""What the tests of pages share: a page's parts, and a browser that shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

_VOID = {"meta", "input", "br", "hr", "img", "link"}
#: Attributes whose value a browser fetches.
_FETCHED = {"src", "href", "srcset", "data", "poster", "action", "formaction", "background"}


class Page(HTMLParser):
    """A page whose elements are closed in order, which fetches nothing, and whose policy names its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.styles, self.scripts, self.words = [], [], []
        self.data = None
        self.policy = ""
        self._kind = ""
        assert text.isascii(), "the page is for any encoding"
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.fetched += [value for key, value in attributes if key in _FETCHED]
        self.handlers += [key for key in named if key.startswith("on")]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        self._kind = named.get("type", "") if tag == "script" else tag
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, text):
        inside = self.open[-1] if self.open else ""
        if inside == "script" and self._kind == "application/json":
            assert self.data is None
            self.data = json.loads(text)
        elif inside == "script":
            self.scripts.append(text)
        elif inside == "style":
            self.styles.append(text)
        else:
            self.words.append(text)

    def check(self) -> None:
        assert self.fetched == [] and self.handlers == []
        assert not {"link", "img", "iframe", "object", "embed", "base"} & set(self.tags)
        assert "default-src 'none'" in self.policy and "http" not in self.policy
        for style in self.styles:
            assert "@import" not in style and "url(" not in style
        for script in self.scripts:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in self.policy


def browser() -> str:
    """Chromium, or the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    return found


def chromium(folder: Path, *arguments: str) -> str:
    """What a headless Chromium without a network writes to stdout."""
    said = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=5000", *arguments],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    return said.stdout


def shown(folder: Path, page: Path) -> str:
    """The elements of a page once its scripts have run, without the scripts."""
    return re.sub(r"<script.*?</script>", "", chromium(folder, "--dump-dom", page.as_uri()), flags=re.S)


def screenshot(folder: Path, page: Path, width: int, dark: bool) -> bytes:
    """A PNG. Chromium's window has at least 500 pixels, so that narrow pages are put into a frame."""
    picture = folder / f"{page.stem}-{width}-{'dark' if dark else 'light'}.png"
    frame = folder / "frame.html"
    frame.write_text(
        f"<!doctype html><meta name=color-scheme content='{'dark' if dark else 'light'}'><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>"
        f"<iframe src='{page.as_uri()}' width={width} height=900></iframe>"
    )
    chromium(folder, f"--screenshot={picture}", f"--window-size={max(width, 500)},900", frame.as_uri())
    return picture.read_bytes()


def pixels_of(png: bytes):
    """[height][width][red, green, blue], from 0 to 1."""
    import io

    pyplot = pytest.importorskip("matplotlib.image", reason="matplotlib reads the picture")
    return pyplot.imread(io.BytesIO(png))[:, :, :3]
