"""``softgate compare``: methods of one place in a network, side by side on the user's own data.

``run.compare`` is the whole of it. A plan (``plan``) names the site, the data and the variants; every training is a
cell (``cell``) of the same grid that reproductions run on; ``record`` turns the figures into one JSON record, and
``summary`` and ``page`` show it.
"""
