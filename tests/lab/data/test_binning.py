"""Deciles: the rules of pandas.qcut, fitted on training rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.errors import ArgumentValueError, StateError
from softgate.lab.data import DecileBinner


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def by_hand(train: np.ndarray, values: np.ndarray, bins: int) -> list[int]:
    """Intervals (edge, edge] between the distinct quantiles, the first closed, the outer ones without end."""
    edges = np.unique(np.quantile(train, np.linspace(0, 1, bins + 1)))
    return [int(sum(value > edge for edge in edges[1:-1])) for value in values]


@pytest.mark.parametrize("bins", [2, 4, 10])
def test_equals_quantile_cuts(bins) -> None:
    rng = np.random.default_rng(0)
    for train in (rng.normal(size=57), rng.integers(0, 5, 40).astype(float), np.r_[np.zeros(30), 1.0, 2.0]):
        values = np.r_[train, -99.0, 99.0, rng.normal(size=9)]
        binner = DecileBinner(bins).fit(torch.tensor(train)[:, None])
        assert binner.transform(torch.tensor(values)[:, None]).flatten().tolist() == by_hand(train, values, bins)


def test_monotone_and_equally_filled() -> None:
    x = torch.randn(1000, 3)
    symbols = DecileBinner().fit_transform(x)
    assert symbols.dtype == torch.uint8
    for values, found in zip(x.unbind(1), symbols.unbind(1), strict=True):
        assert found.bincount().tolist() == [100] * 10
        assert bool((found[values.argsort()].int().diff() >= 0).all())


def test_constant_column_is_one_bin() -> None:
    binner = DecileBinner().fit(column(3, 3, 3))
    assert binner.transform(column(3, -1, 9)).flatten().tolist() == [0, 0, 0]


def test_missing_values() -> None:
    nan = float("nan")
    with pytest.raises(ArgumentValueError, match="column 1"):
        DecileBinner().fit(torch.tensor([[1.0, nan], [2.0, 3.0]]))
    binner = DecileBinner(4, missing="reserved").fit(column(1, 2, nan, 3, 4))
    assert binner.transform(column(nan, 1, 4)).flatten().tolist() == [4, 0, 3]
    assert DecileBinner(4, missing="reserved").fit(column(nan)).transform(column(nan, 7)).flatten().tolist() == [4, 0]


def test_misuse() -> None:
    with pytest.raises(StateError, match="fit"):
        DecileBinner().transform(column(1))
    with pytest.raises(ArgumentValueError, match="1 columns"):
        DecileBinner().fit(column(1)).transform(torch.ones(2, 2))
    for bad in (torch.ones(3), torch.ones(0, 2)):
        with pytest.raises(ArgumentValueError, match="features"):
            DecileBinner().fit(bad)
    with pytest.raises(ArgumentValueError, match="bins"):
        DecileBinner(0)
