"""One file per paper: what it claims, and how each scale measures it.

A file here defines ``PAPER``, a :class:`softgate.lab.paper.Paper`. It is found by listing this package.
"""
