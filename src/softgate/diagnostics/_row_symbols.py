"""Rows of a matrix as symbols, and entropies of symbols in bits; everything is exact, nothing is hashed.

Shape suffixes: N rows (samples), D columns (units).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__: list[str] = []

_WORD = 62  # bits that int64 holds without its sign, less one


class Symbols(NamedTuple):
    """One symbol per row: numbers from 0 to ``size - 1``, all of which occur."""

    codes: Tensor
    size: int


def ranked(values: Tensor) -> Symbols:
    """Number the distinct values of a vector in ascending order."""
    found, codes = values.unique(return_inverse=True)
    return Symbols(codes, len(found))


def of_rows(digits_ND: Tensor, base: int) -> Symbols:
    """One symbol per distinct row of integers from 0 to ``base - 1``.

    As many columns as an int64 can hold are read as one number in base ``base``; between two such packs the numbers
    are ranked, so that rows of any width stay exact. It ends early once all rows differ.
    """
    width = (base - 1).bit_length()
    rows = len(digits_ND)
    symbols = Symbols(torch.zeros(rows, dtype=torch.int64, device=digits_ND.device), 1)
    column = 0
    while column < digits_ND.shape[1] and symbols.size < rows:
        free = _WORD - (symbols.size - 1).bit_length()
        taken = max(free // max(width, 1), 1)
        code = symbols.codes
        for digit_N in digits_ND[:, column : column + taken].to(torch.int64).unbind(1):
            code = (code << width) | digit_N
        symbols, column = ranked(code), column + taken
    return symbols


def of_values(values_ND: Tensor) -> Symbols:
    """One symbol per distinct row of any numbers."""
    if values_ND.shape[1] == 1:
        return ranked(values_ND[:, 0])
    levels, digits = values_ND.unique(return_inverse=True)
    return of_rows(digits, len(levels))


def joint(a: Symbols, b: Symbols) -> Symbols:
    """Pairs of symbols as symbols."""
    return ranked(a.codes * b.size + b.codes)


def entropy(symbols: Symbols) -> float:
    """Entropy of the symbols in bits, as often as they occur: ``-Σ p log2 p``."""
    counts = torch.bincount(symbols.codes, minlength=symbols.size).double()
    total = counts.sum()
    return max(float(total.log2() - (counts * counts.log2()).sum() / total), 0.0)


def shared(a: Symbols, b: Symbols) -> float:
    """Mutual information of two symbols in bits: ``H(A) + H(B) - H(A, B)``."""
    return max(entropy(a) + entropy(b) - entropy(joint(a, b)), 0.0)
