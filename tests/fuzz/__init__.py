"""Hostile bytes for every reader of text that comes from outside.

`targets.py` says what each reader promises. The ordinary tests try a few hundred inputs of each
(`test_targets.py`); `python -m tests.fuzz TARGET --runs N` tries as many as asked, guided by coverage.
"""
