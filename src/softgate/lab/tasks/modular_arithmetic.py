"""Modular arithmetic: all pairs of residues, one-hot encoded, labelled with their sum, difference or product."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from softgate.errors import ArgumentValueError, check_choice
from softgate.lab.tasks.split import Split, divide

__all__ = ["OPERATIONS", "modular_arithmetic"]

OPERATIONS = ("add", "subtract", "product")


def modular_arithmetic(
    seed: int, modulus: int = 113, operation: str = "add", fraction: float = 0.4, *, tokens: bool = False
) -> Split:
    """All ``modulus ** 2`` pairs (x, y) with label ``(x op y) mod modulus``.

    Args:
        seed: which pairs are trained on.
        modulus: number of residues and of classes.
        operation: ``"add"``, ``"subtract"`` or ``"product"``.
        fraction: share of the pairs to train on.
        tokens: inputs are the two residues, (N, 2) int64, instead of two one-hot vectors side by side, (N, 2 modulus).
    """
    check_choice("operation", operation, OPERATIONS)
    if modulus < 2:
        raise ArgumentValueError(f"modulus must be at least 2, got {modulus!r}")
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    x, y = pairs.unbind(1)
    labels = {"add": x + y, "subtract": x - y, "product": x * y}[operation] % modulus
    inputs = pairs if tokens else one_hot(pairs, modulus).flatten(1).float()
    return divide(inputs, labels, fraction, seed)
