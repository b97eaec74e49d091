"""Runs of mikv's measuring commands as a page with charts and tables: python -m mikv.report."""
