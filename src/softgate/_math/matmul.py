"""Products of float32 matrices on the CPU: torch's, or the compiled ones where those are faster."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate import native

__all__: list[str] = []

#: Rows (or, of a product that sums over the rows, terms) from which the compiled products pay.
_FEWEST = 8
#: The same where the second matrix is stored row by row, which torch's products need not copy.
_FEWEST_PLAIN = 64


#: Numbers of the compiled extension for what it multiplies; sums are float32.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """``out = a b``, or ``out += a b``, without autograd.

    Where the compiled products run, the factors may be of several dtypes; sums are made in float32, always in the same
    order whatever the number of threads, and rounded once.

    Args:
        a: (M, K).
        b: (K, N), of the same dtype as far as torch's products go.
        out: (M, N), not overlapping the others.
        add: add to what is in ``out``.
    """
    if not suits(a, b, out):
        if add:
            torch.addmm(out, a, b, out=out)
        else:
            torch.mm(a, b, out=out)
    else:
        native.kernels().matmul(
            *(_TYPES[a.dtype], a.data_ptr(), *a.stride(), _TYPES[b.dtype], b.data_ptr(), *b.stride()),
            *(_TYPES[out.dtype], out.data_ptr(), out.stride(0), out.shape[0], out.shape[1], a.shape[1]),
            *(add, torch.get_num_threads()),
        )


def suits(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether the compiled products can work on these and are the faster ones."""
    if not (native.available() and native.kernels().has_matmul()):
        return False
    if any(x.dtype not in _TYPES or x.device.type != "cpu" for x in (a, b, out)):
        return False
    if out.stride(1) != 1 or 1 not in a.stride() or 1 not in b.stride():
        return False
    if a.dtype is not torch.float32 or b.dtype is not torch.float32:
        return True
    rows, terms = a.shape
    fewest = _FEWEST_PLAIN if b.stride(1) == 1 and a.stride(1) == 1 else _FEWEST
    return min(rows, terms) >= fewest and out.shape[1] >= _FEWEST
