"""Sparse parity: the label is the parity of a few of many bits, the others are noise."""

from __future__ import annotations

import torch

from softgate.errors import ArgumentValueError
from softgate.lab import seeds
from softgate.lab.tasks.split import Split, divide

__all__ = ["sparse_parity"]


def sparse_parity(seed: int, rows: int = 2000, noise: int = 40, parity: int = 3, fraction: float = 0.5) -> Split:
    """``rows`` distinct binary vectors; the label is the parity of the first ``parity`` bits.

    Args:
        seed: draws the vectors and the training rows.
        rows: number of vectors, at most ``2 ** (noise + parity)``.
        noise: number of bits without influence.
        parity: number of bits that decide.
        fraction: share of the rows to train on.
    """
    width = noise + parity
    if not 2 <= rows <= 2**width:
        raise ArgumentValueError(f"rows must be in [2, {2**width}], got {rows!r}")
    stream = seeds.generator(seed, "bits")
    bits = torch.empty(0, width, dtype=torch.int64)
    while len(bits) < rows:
        bits = torch.cat([bits, torch.randint(2, (2 * rows, width), generator=stream)]).unique(dim=0)
    bits = bits[torch.randperm(len(bits), generator=stream)[:rows]]  # unique() has sorted them
    return divide(bits.float(), bits[:, :parity].sum(1) % 2, fraction, seed)
