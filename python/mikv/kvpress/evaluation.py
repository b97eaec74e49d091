"""The evaluation/ folder of a kvpress checkout: registries and runner. It is in the repository, not in the wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from .._cli import UsageError, need

#: Where scripts/setup_kvpress.sh puts the checkout.
_INSTALLED = Path(sys.prefix) / "share" / "kvpress" / "evaluation"

_REMEDY = "run scripts/setup_kvpress.sh DIR and use DIR/bin/python, as kvpress 0.5.5 wants transformers older than 5.3"


def load(folder: Path | None) -> Any:
    """The module evaluation/evaluate.py of a checkout of the version that is installed."""
    need("kvpress", _REMEDY)
    folder = folder or Path(os.environ.get("MIKV_KVPRESS_EVALUATION", _INSTALLED))
    if (folder / "evaluation" / "evaluate.py").is_file():
        folder = folder / "evaluation"
    if not (folder / "evaluate.py").is_file():
        raise UsageError(
            f"{folder} has no evaluate.py; give --kvpress-evaluation the evaluation/ folder of a kvpress checkout, or "
            "run scripts/setup_kvpress.sh, which makes one"
        )
    # Its modules are found by short names, one of which is also a package's: `evaluate` of Hugging Face.
    sys.path.insert(0, str(folder.resolve()))
    logging.disable(logging.WARNING)  # it warns of presses and data sets that nobody asked for
    try:
        spec = importlib.util.spec_from_file_location("kvpress_evaluate", folder / "evaluate.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # --json owns stdout
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    except ImportError as error:
        raise UsageError(
            f"{folder} does not load ({error}); its version is another, or packages are missing: {_REMEDY}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
        sys.path.remove(str(folder.resolve()))
    for name in ("EvaluationConfig", "EvaluationRunner", "PRESS_REGISTRY", "DATASET_REGISTRY", "SCORER_REGISTRY"):
        if not hasattr(module, name):
            raise UsageError(
                f"{folder}/evaluate.py has no {name}; check out the commit that scripts/setup_kvpress.sh names"
            )
    logging.getLogger(module.__name__).propagate = False
    return module
