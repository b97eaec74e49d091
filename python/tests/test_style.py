"""The package is formatted and linted as pyproject.toml says. `mypy -p mikv` checks the types; it is not run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ruff", reason="the test of style needs ruff")
PACKAGE = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", (["check"], ["format", "--check"]))
def test_ruff_is_content(command):
    said = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "mikv", "tests"],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr
