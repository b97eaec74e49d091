"""kvpress's own pipeline and scorers with a mikv cache: python -m mikv.kvpress (docs/python-eval.md)."""
