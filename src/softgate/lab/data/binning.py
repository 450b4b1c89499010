"""Numbers to symbols: deciles, fitted on training rows and applied to any."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentValueError, StateError, check_choice

__all__ = ["DecileBinner"]


class DecileBinner:
    """Cut every column at its quantiles; ``fit`` and ``transform`` as in scikit-learn.

    Equal quantiles are merged, so a column whose values repeat has fewer bins and a constant column has one. A bin
    includes its upper edge, the first its lower edge too; values beyond the fitted range go to the outer bins.

    Args:
        bins: number of equally filled bins, 10 for deciles.
        missing: what NaN becomes: ``"error"``, or ``"reserved"`` for the symbol ``bins``.

    Example:
        >>> binner = DecileBinner(4).fit(torch.arange(8.0)[:, None])
        >>> binner.transform(torch.tensor([[-5.0], [2.0], [99.0]])).flatten().tolist()
        [0, 1, 3]
    """

    def __init__(self, bins: int = 10, missing: Literal["error", "reserved"] = "error") -> None:
        check_sizes(bins=bins)
        check_choice("missing", missing, ("error", "reserved"))
        self.bins, self.missing = bins, missing
        #: Inner edges of every column, once fitted.
        self.edges: list[Tensor] = []

    def fit(self, features: Tensor) -> DecileBinner:
        """Find the quantiles of ``features`` (N, D), NaN left out; returns self."""
        self._check(features)
        if len(features) == 0:
            raise ArgumentValueError("features must have at least one row to fit quantiles to, got none")
        levels = torch.arange(1, self.bins, dtype=torch.float64) / self.bins
        self.edges = []
        for column in features.double().unbind(1):
            # torch.quantile refuses columns of more than 16 million entries, which is more than these tables have
            known = column[~column.isnan()]
            edges = known.quantile(levels).unique() if known.numel() else levels[:0]
            # as pandas.qcut(duplicates="drop") merges them: the outer edges are the smallest and the largest value
            self.edges.append(edges[(edges > known.min()) & (edges < known.max())] if known.numel() else edges)
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Symbols (N, D), uint8 (int64 for more than 255 bins), in ``[0, bins)``, or ``bins`` for NaN if reserved."""
        self._check(features)
        if not self.edges:
            raise StateError("transform needs fit(features) first")
        if features.shape[1] != len(self.edges):
            raise ArgumentValueError(f"features must have the {len(self.edges)} columns of the fitted ones, "
                                     f"got {features.shape[1]}")  # fmt: skip
        columns = features.double().unbind(1)
        symbols = [torch.bucketize(c.contiguous(), e) for c, e in zip(columns, self.edges, strict=True)]
        found = torch.where(features.isnan(), self.bins, torch.stack(symbols, dim=1))
        return found.to(torch.uint8 if self.bins < 256 else torch.int64)

    def fit_transform(self, features: Tensor) -> Tensor:
        """``fit`` and ``transform`` of the same rows."""
        return self.fit(features).transform(features)

    def _check(self, features: Tensor) -> None:
        check_float_tensor("features", features)
        if features.ndim != 2:
            raise ArgumentValueError(f"features must have shape (N, D), got {tuple(features.shape)}")
        if self.missing == "error" and bool(features.isnan().any()):
            column = int(features.isnan().any(0).nonzero()[0])
            raise ArgumentValueError(f"features must not be NaN (or set missing='reserved'), column {column} is")
