"""Attention read backwards: the query that makes a head attend as prescribed."""

from __future__ import annotations

import math

from torch import Tensor

from softgate._checks import check_number
from softgate.diagnostics.softmax_regression.estimator import SoftmaxRegression
from softgate.diagnostics.softmax_regression.objective import ABSENT, check_problem
from softgate.errors import ArgumentValueError

__all__ = ["solve_query"]


def solve_query(keys: Tensor, weights: Tensor, scale: float | None = None) -> Tensor:
    """The query whose softmax attention over ``keys`` is nearest to ``weights``, in the sense of least squares.

    Use it to read a head (which query would attend like this?), to edit it, or as a target when one head is distilled
    into another. For how the fit ended, and other solvers, use
    :class:`softgate.diagnostics.softmax_regression.SoftmaxRegression` on ``scale * keys``.

    Args:
        keys: (…, n, d), real floating point, finite.
        weights: attention rows, (…, n); leading dimensions broadcast.
        scale: factor of the scores, 1/√d if None.

    Returns:
        Query (…, d) in the dtype of ``keys``, of smallest norm where several give the same weights. Found in float64.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: shapes that do not fit, n or d of 0, NaN or infinities, ``scale`` not positive.

    Warns:
        UserWarning: ``weights`` is not a distribution, or has zeros.

    Example:
        >>> import torch
        >>> keys, query = torch.randn(6, 3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        >>> weights = (keys @ query / 3**0.5).softmax(-1)
        >>> bool((solve_query(keys, weights) - query).abs().max() < 1e-9)
        True

    Paper: The Closeness of In-Context Learning and Weight Shifting for Softmax Regression, arXiv 2304.13276.
    """
    check_problem(keys, ABSENT, weights, names=("keys", "query", "weights", "w"))
    if not (bool(keys.isfinite().all()) and bool(weights.isfinite().all())):
        raise ArgumentValueError("keys and weights must be finite, got NaN or an infinity")
    factor = 1.0 / math.sqrt(keys.shape[-1])
    if scale is not None:
        factor = check_number("scale", scale, low=0.0, low_open=True, high_open=True)
    query, _ = SoftmaxRegression().fit(factor * keys.double(), weights.double())
    return query.to(keys.dtype)
