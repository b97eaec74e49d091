"""python -m mikv.compare: caches side by side on one model, in one process. docs/python-compare.md has the rest."""
