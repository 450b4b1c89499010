"""Data sets for reproductions and tests, as plain tensors and text.

A data set is looked for in ``$SOFTGATE_DATA``, then in the user's cache, and is downloaded only where the caller says
``download=True``. Files come from strangers: every reader checks sizes, counts and ranges before it believes them.
"""
