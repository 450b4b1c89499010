"""How numbers are stored, bit by bit: fixed point in two's complement, and floats."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, bad_type

__all__: list[str] = []

_FLOATS = {"float32": (torch.float32, torch.int32), "bfloat16": (torch.bfloat16, torch.int16),
           "float16": (torch.float16, torch.int16)}  # fmt: skip
_FIXED = re.compile(r"q(\d+)\.(\d+)")
KNOWN = "'q15.16' (any 'qINTEGER.FRACTION' of at most 32 bits with the sign), 'int8', 'float32', 'bfloat16', 'float16'"


class NumberFormat(NamedTuple):
    """A way to store a number in ``bits`` bits.

    Attributes:
        name: as it was asked for.
        bits: of one number, the highest one being the sign.
        fraction: binary places of a fixed-point format; None for floats, and for int8, whose scale depends on the data.
    """

    name: str
    bits: int
    fraction: int | None

    def unit(self, tensor: Tensor) -> float:
        """The size of the lowest bit; a float has none, and gives 1."""
        if self.fraction is not None:
            return 2.0**-self.fraction
        if self.name == "int8":
            return (float(tensor.abs().max()) if tensor.numel() else 0.0) / 127.0 or 1.0
        return 1.0

    def encode(self, values: Tensor, unit: float) -> Tensor:
        """The stored integers, int64; fixed point truncates toward zero, int8 rounds, and both saturate."""
        if self.name in _FLOATS:
            dtype, integer = _FLOATS[self.name]
            return values.to(dtype).view(integer).long()
        scaled = values.double() / unit
        whole = scaled.round() if self.name == "int8" else scaled.trunc()
        top = 2.0 ** (self.bits - 1)
        return whole.nan_to_num(0.0).clamp(-top, top - 1.0).long()

    def decode(self, raw: Tensor, unit: float) -> Tensor:
        """The numbers that the integers stand for, float64."""
        if self.name in _FLOATS:
            dtype, integer = _FLOATS[self.name]
            return raw.to(integer).view(dtype).double()
        return raw.double() * unit

    def flip(self, raw: Tensor, mask: Tensor) -> Tensor:
        """``raw`` with the bits of ``mask`` flipped, as signed integers of ``bits`` bits."""
        turned = (raw ^ mask) & (2**self.bits - 1)
        return torch.where(turned >= 2 ** (self.bits - 1), turned - 2**self.bits, turned)


def number_format(name: str) -> NumberFormat:
    """The format called ``name``."""
    if not isinstance(name, str):
        bad_type("fmt", name, f"a string, one of {KNOWN}")
    fixed = _FIXED.fullmatch(name)
    if fixed is not None:
        whole, fraction = map(int, fixed.groups())
        if not 2 <= 1 + whole + fraction <= 32:
            raise ArgumentValueError(f"fmt must have between 2 and 32 bits with the sign, got {name!r}")
        return NumberFormat(name, 1 + whole + fraction, fraction)
    if name == "int8":
        return NumberFormat(name, 8, None)
    if name not in _FLOATS:
        raise ArgumentValueError(f"fmt must be one of {KNOWN}, got {name!r}")
    return NumberFormat(name, torch.finfo(_FLOATS[name][0]).bits, None)
