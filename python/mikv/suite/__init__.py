"""python -m mikv.suite: standard harnesses on `mikv server`, one arm for each cache. docs/python-eval.md has the rest."""
