"""The references: ordinary torch operations, for every device, dtype and transform.

``softmax(x)_i = exp(x_i) / sum_j exp(x_j)``, ``log_softmax`` its logarithm, ``logsumexp(x) = log sum_j exp(x_j)``, and
the pair ``(m, n)`` with ``sum_j exp(x_j) = m 2^n``, ``n = round(max(x) / ln 2)`` (arXiv 2001.04438, section 3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LN2 = math.log(2.0)
#: Beyond this exponent float32 is too coarse for ``x / ln 2``: such rows have no pair.
PAIR_LIMIT = 2.0**21


def into(out: Tensor | None, result: Tensor) -> Tensor:
    """``result``, copied into ``out`` if there is one."""
    return result if out is None else out.copy_(result)


def softmax_reference(
    x: Tensor,
    dim: int = -1,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    **_: Any,
) -> Tensor:
    """Softmax by :func:`torch.softmax`; ``empty="zero"`` gives zeros for rows of ``-inf``."""
    if empty == "nan":
        return into(out, torch.softmax(x, dim, dtype=dtype))
    nothing = _nothing(x, dim)
    y = torch.softmax(x.masked_fill(nothing, 0.0), dim, dtype=dtype)
    return into(out, y.masked_fill(nothing, 0.0))


def log_softmax_reference(
    x: Tensor,
    dim: int = -1,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    **_: Any,
) -> Tensor:
    """Log-softmax by :func:`torch.log_softmax`; ``empty="zero"`` gives ``log 0`` for rows of ``-inf``."""
    if empty == "nan":
        return into(out, torch.log_softmax(x, dim, dtype=dtype))
    nothing = _nothing(x, dim)
    y = torch.log_softmax(x.masked_fill(nothing, 0.0), dim, dtype=dtype)
    return into(out, y.masked_fill(nothing, -math.inf))


def logsumexp_reference(
    x: Tensor, dim: int = -1, *, out: Tensor | None = None, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    """Log-sum-exp by :func:`torch.logsumexp`."""
    return into(out, torch.logsumexp(x if dtype is None else x.to(dtype), dim))


def pair_reference(x: Tensor, dim: int = -1, **_: Any) -> tuple[Tensor, Tensor]:
    """Mantissa and exponent of the sum of exponentials, in float32 (float64 for float64)."""
    wide = x.to(torch.float64)
    result = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.ndim == 0:
        wide, dim = wide.reshape(1), 0
    if wide.shape[dim] == 0:
        shape = [size for i, size in enumerate(wide.shape) if i != dim % wide.ndim]
        return wide.sum(dim).to(result), wide.new_full(shape, -math.inf, dtype=result)
    top = wide.detach().amax(dim, keepdim=True)
    exponent = torch.round(top / LN2)
    countable = exponent.abs() < PAIR_LIMIT
    terms = torch.exp(wide - exponent.where(countable, 0.0) * LN2)
    mantissa = terms.sum(dim).where((countable | (top == -math.inf)).squeeze(dim), math.nan)
    exponent = exponent.where(countable | (top == -math.inf), 0.0).squeeze(dim)
    return mantissa.to(result), exponent.to(result)


def _nothing(x: Tensor, dim: int) -> Tensor:
    return (x == -math.inf).all(dim, keepdim=True)
