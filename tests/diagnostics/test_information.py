"""Mutual information: laws, closed forms, brute force, limits, bad input."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from softgate.diagnostics import (
    DiagnosisWarning,
    adaptive_edges,
    bin_index,
    information_sensitivity,
    mutual_information,
)
from softgate.diagnostics import _row_symbols as symbols

quiet = pytest.mark.filterwarnings("ignore::softgate.diagnostics.DiagnosisWarning")


def _layer(rows: int = 300, units: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4)
    return torch.tanh(x @ torch.randn(4, units)), (x[:, 0] > 0.3).long()


def _entropy(items: list[object]) -> float:
    counts = Counter(items)
    return -sum(c / len(items) * math.log2(c / len(items)) for c in counts.values())


@pytest.mark.parametrize("bins", [3, 30])
def test_by_counting(bins: int) -> None:
    T, y = _layer()
    rows = list(map(tuple, bin_index(T, adaptive_edges(T, bins)).tolist()))
    labels = y.tolist()
    h = _entropy(rows)
    given = sum(
        labels.count(c) / len(labels) * _entropy([r for r, label in zip(rows, labels, strict=True) if label == c])
        for c in set(labels)
    )
    found = mutual_information(T, y=y, bins=bins)
    assert found.i_tx == pytest.approx(h, abs=1e-12) and found.h_t == found.i_tx
    assert found.i_ty == pytest.approx(h - given, abs=1e-12)


@quiet
@pytest.mark.parametrize("units", [1, 5, 70])
def test_rows_of_any_width_are_told_apart(units: int) -> None:
    digits = torch.randint(3, (400, units))
    digits[200:] = digits[:200]
    digits[:, -1] = torch.arange(400) % 2  # rows that differ in the last column only
    found = symbols.of_rows(digits, 3)
    rows = [tuple(row) for row in digits.tolist()]
    assert found.size == len(set(rows)) and int(found.codes.max()) == found.size - 1
    assert len({(row, int(code)) for row, code in zip(rows, found.codes, strict=True)}) == found.size
    assert symbols.of_values(digits.float() - 0.5).size == found.size


def test_adaptive_bins_do_not_see_a_rising_map_or_an_order() -> None:
    T, y = _layer()
    found = mutual_information(T, y=y)
    for other in (T.exp() - 3.0, T**3, T[:, [2, 0, 1]]):
        assert mutual_information(other, y=y)[:2] == pytest.approx(found[:2], abs=1e-12)
    order = torch.randperm(len(T))
    assert mutual_information(T[order], y=y[order])[:2] == pytest.approx(found[:2], abs=1e-12)
    hidden = T.relu()
    expected = mutual_information(hidden, y=y)
    assert mutual_information(3.0 * hidden**2, y=y)[:2] == pytest.approx(expected[:2], abs=1e-12)  # keeps zero
    assert mutual_information(hidden + 1.0, y=y).i_tx != expected.i_tx  # zero loses its bin


@pytest.mark.parametrize("estimator", ["ebab", "fixed", "kde", "akde"])
def test_order_of_the_quantities(estimator: str) -> None:
    T, y = _layer()
    found = mutual_information(T, y=y, estimator=estimator, bins=8)
    assert 0.0 <= found.i_ty <= min(_entropy(y.tolist()), found.i_tx) and found.i_tx <= found.limit
    one = mutual_information(T, y=torch.zeros_like(y), estimator=estimator, bins=8)
    assert one.i_tx == found.i_tx and one.i_ty == 0.0
    constant = mutual_information(torch.full_like(T, 0.3), y=y, estimator=estimator)
    assert constant.i_tx == pytest.approx(0.0, abs=1e-9) and constant.i_ty == pytest.approx(0.0, abs=1e-9)
    dead = mutual_information(torch.zeros(20, 2), estimator=estimator)
    assert dead.i_tx == 0.0 and not dead.saturated and dead.i_ty is None


def test_nested_bins_see_more() -> None:
    T, y = _layer(700, 2)
    found = [mutual_information(T, y=y, estimator="fixed", bins=n, range=(-1.0, 1.0)) for n in (3, 5, 9, 17, 33)]
    for coarse, fine in itertools.pairwise(found):
        assert coarse.i_tx <= fine.i_tx and coarse.i_ty <= fine.i_ty + 1e-12


def test_values_outside_a_fixed_range_have_bins_of_their_own() -> None:
    T = torch.tensor([-2.0, -0.5, 0.4, 0.6, 1.0, 3.0])
    found = mutual_information(T, estimator="fixed", bins=2, range=(-1.0, 1.0))
    assert found.i_tx == pytest.approx(_entropy(["below", "in", "in", "in", "last", "last"]))
    assert "from 0 to 3" in mutual_information(T.relu(), estimator="fixed").setting
    assert "from -1 to 1" in mutual_information(T.tanh()[:5].repeat(3), estimator="fixed").setting
    assert "from -2 to 3" in mutual_information(T.repeat(2), estimator="fixed").setting


@quiet
def test_density_in_the_limits() -> None:
    T, y = _layer(100)
    none, much = (mutual_information(T, y=y, estimator="kde", noise=v) for v in (0.0, 1e8))
    for bound in (none.upper, none.lower):
        assert bound.i_tx == pytest.approx(math.log2(100), abs=1e-9)
        assert bound.i_ty == pytest.approx(_entropy(y.tolist()), abs=1e-9)
    assert none.saturated and much.i_tx < 1e-6 and not much.saturated
    clusters = torch.cat((torch.zeros(40, 2), torch.full((40, 2), 50.0)))
    found = mutual_information(clusters, y=torch.arange(80) // 40, estimator="kde", noise=1.0)
    assert found.upper == pytest.approx((1.0, 1.0), abs=1e-6) and found.lower == pytest.approx((1.0, 1.0), abs=1e-6)


def test_density_bounds_and_adaptive_noise() -> None:
    T, y = _layer()
    for noise in (1e-3, 1e-2, 0.1, 1.0):
        found = mutual_information(T, y=y, estimator="kde", noise=noise)
        assert found.lower.i_tx <= found.upper.i_tx == found.i_tx
    low = mutual_information(T, y=y, estimator="kde", noise=0.1, bound="lower")
    assert low.upper is None and low.i_tx == low.lower.i_tx and low.h_t < 10
    up = mutual_information(T, y=y, estimator="kde", noise=0.1, bound="upper")
    assert up.lower is None and up.h_t > low.h_t
    largest = float(T.abs().max())
    adaptive = mutual_information(T, y=y, estimator="akde", noise=0.01)
    assert adaptive.i_tx == pytest.approx(mutual_information(T, y=y, estimator="kde", noise=0.01 * largest).i_tx)
    # the variance follows the layer in the first power: a layer four times as large has a finer resolution
    assert mutual_information(4 * T, estimator="akde", noise=0.01).i_tx > adaptive.i_tx
    double = mutual_information(T.double(), y=y, estimator="akde", noise=0.01)
    assert adaptive.i_tx == pytest.approx(double.i_tx, abs=1e-5)


@quiet
@pytest.mark.parametrize("estimator", ["ebab", "kde"])
def test_equal_inputs(estimator: str) -> None:
    x = torch.arange(40) // 4
    clean = torch.randn(10, 2)[x]
    noisy = clean + 0.3 * torch.randn(40, 2)
    for inputs in (x, torch.nn.functional.one_hot(x).float()):
        exact = mutual_information(clean, inputs, estimator=estimator, noise=1e-4)
        assert exact.i_tx == pytest.approx(math.log2(10), abs=1e-3) and exact.limit == math.log2(10)
        blurred = mutual_information(noisy, inputs, estimator=estimator, bins=3, noise=0.05)
        assert blurred.i_tx < mutual_information(noisy, estimator=estimator, bins=3, noise=0.05).i_tx


def test_labels_in_two_forms_and_other_activity() -> None:
    T, y = _layer()
    expected = mutual_information(T, y=y).i_ty
    one_hot = torch.nn.functional.one_hot(y)
    for labels in (one_hot, one_hot.float(), one_hot.bool(), y.bool(), 5 * y):
        assert mutual_information(T, y=labels).i_ty == pytest.approx(expected, abs=1e-12)
    assert mutual_information(T.bfloat16(), y=y).i_tx > 0
    assert mutual_information(y, y=y)[:2] == pytest.approx((_entropy(y.tolist()),) * 2)  # what a router chose


def test_saturation_is_said() -> None:
    images = torch.rand(20, 2, 3, 3)
    with pytest.warns(DiagnosisWarning, match="4.32 bits"):
        found = mutual_information(images)
    assert found.saturated and found.i_tx == pytest.approx(math.log2(20)) == pytest.approx(found.limit)
    assert "made by the bins" in found.assumption


def test_sensitivity() -> None:
    T, y = _layer()
    found = information_sensitivity(T, y=y, bins=(2, 4, 8), noise=(0.1, 1.0))
    bits = [result.i_tx for result in found.values()]
    assert len(found) == 5 and bits[0] < bits[1] < bits[2] and bits[3] > bits[4]
    assert found["ebab, 4 bins"] == mutual_information(T, y=y, bins=4)


T, Y = torch.rand(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        (([1.0, 2.0],), {}, TypeError, "T"),
        ((T[:1],), {}, ValueError, "at least 2"),
        ((T[:, :0],), {}, ValueError, "T"),
        ((torch.full((4, 2), math.nan),), {}, ValueError, "finite"),
        ((T.to(torch.complex64),), {}, TypeError, "real"),
        ((T, None, Y[:5]), {}, ValueError, "y must have as many rows"),
        ((T, T[:5]), {}, ValueError, "X must have as many rows"),
        ((T, None, -Y), {}, ValueError, "y must not be negative"),
        ((T, None, Y.float()), {}, TypeError, "y"),
        ((T, None, T), {}, ValueError, "one-hot"),
        ((T, None, Y[:, None]), {}, ValueError, "shape"),
        ((T, None, [0, 1]), {}, TypeError, "y"),
        ((T,), {"bins": 0}, ValueError, "bins"),
        ((T,), {"estimator": "knn"}, ValueError, "estimator"),
        ((T,), {"estimator": "kde", "noise": -0.1}, ValueError, "noise"),
        ((T,), {"estimator": "kde", "bound": "middle"}, ValueError, "bound"),
        ((T,), {"estimator": "fixed", "range": (1.0, 1.0)}, ValueError, "range"),
        ((T,), {"estimator": "fixed", "range": 1.0}, TypeError, "range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        mutual_information(*arguments, **options)  # type: ignore[arg-type]
