"""The notebook of examples/python runs, on the small real model, and shows what its text says."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

import mikv

nbformat = pytest.importorskip("nbformat", reason="the notebook's test needs nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="the notebook's test needs nbclient and ipykernel")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "python" / "tiers.ipynb"
MODEL = Path(os.environ.get("MIKV_TEST_MODEL", Path.home() / ".cache/mikv/models/smollm2-135m.gguf"))


@pytest.mark.long
@pytest.mark.skipif(not MODEL.is_file(), reason="no model: set MIKV_TEST_MODEL, or `mikv model get smollm2-135m`")
def test_the_notebook_of_tiers(tmp_path, monkeypatch):
    monkeypatch.setenv("MIKV_TEST_MODEL", str(MODEL))
    monkeypatch.setenv("PYTHONPATH", str(Path(mikv.__file__).resolve().parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "save the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=tmp_path)

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    answers = {line.split()[0]: line for line in said.splitlines() if "bits per element" in line}
    assert list(answers) == ["full", "mikv", "mikv-max", "h2o"]
    for spec in ("full", "mikv", "mikv-max"):
        assert "' 1352" in answers[spec]
    assert "' 1352" not in answers["h2o"]
    pictures = [
        base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1 and len(pictures[0]) > 10_000
