"""Edges with equally many distinct values between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from softgate.diagnostics import adaptive_edges, bin_index


def test_equally_many_distinct_values_not_samples() -> None:
    values = torch.cat((torch.zeros(500), torch.ones(300), torch.arange(2.0, 61.0)))
    edges = adaptive_edges(values, 6)
    assert edges[0] == 0 and edges[-1] == 60 and len(edges) == 8
    counts = torch.bincount(bin_index(values.unique(), edges))
    assert counts.tolist() == [1, 10, 10, 10, 10, 10, 9, 1]  # zero alone, and the largest out of the last ten


@pytest.mark.parametrize("bins", [1, 7, 30])
def test_numpy_says_the_same(bins: int) -> None:
    T = torch.randn(200, 4).relu()
    levels = np.setdiff1d(np.unique(T.numpy()), [0.0])
    theirs = np.array([0.0, *(levels[k * len(levels) // bins] for k in range(bins)), levels[-1]], dtype=np.float32)
    np.testing.assert_array_equal(adaptive_edges(T, bins).numpy(), theirs)
    np.testing.assert_array_equal(bin_index(T, adaptive_edges(T, bins)).numpy(), np.digitize(T.numpy(), theirs) - 1)


def test_few_values_repeat_edges_and_none_leave_one() -> None:
    assert adaptive_edges(torch.tensor([0.0, 1.0, 2.0]), 4).tolist() == [0, 1, 1, 2, 2, 2]
    assert adaptive_edges(torch.zeros(5, 2)).tolist() == [0.0]
    assert bin_index(torch.zeros(5), adaptive_edges(torch.zeros(5))).tolist() == [0] * 5
    assert adaptive_edges(torch.full((3,), 2.0), 2).tolist() == [0, 2, 2, 2]


def test_the_value_with_a_bin_of_its_own() -> None:
    T = torch.tensor([-0.5, 0.0, 1.0])
    below = adaptive_edges(T, 2)
    assert below[0] < -0.5 and below[1:].tolist() == [-0.5, 0.0, 1.0]
    assert adaptive_edges(T, 2, low=-1.0)[0] == -1.0
    # ours where the code of the paper has no branch: 0 would lie above the smallest value of Swish
    assert torch.equal(adaptive_edges(T, 2, low=0.0), below)
    assert bin_index(T, below).tolist() == [1, 2, 3]


def test_dtypes() -> None:
    T = torch.rand(50)
    assert adaptive_edges(T.bfloat16()).dtype is torch.float32
    assert adaptive_edges(T.double()).dtype is torch.float64


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ((torch.arange(4),), TypeError, "activity"),
        ((torch.ones(0),), ValueError, "activity"),
        ((torch.tensor([1.0, math.nan]),), ValueError, "finite"),
        ((torch.ones(3), 0), ValueError, "bins"),
        ((torch.ones(3), 2.5), TypeError, "bins"),
        ((torch.ones(3), 3, math.inf), ValueError, "low"),
    ],
    ids=["integers", "empty", "nan", "no bins", "half a bin", "infinite"],
)
def test_bad_input(arguments: tuple[object, ...], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        adaptive_edges(*arguments)  # type: ignore[arg-type]
