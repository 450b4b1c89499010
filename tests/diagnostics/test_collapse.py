"""Softmax Collapse at the exact thresholds of every dtype, alignment with naive loss minimisation, the monitor."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from softgate.diagnostics import nlm_alignment, softmax_collapse
from softgate.diagnostics.collapse import CollapseMonitor, CollapseWarning, _bad_logits, _bad_weights

INF, NAN = float("inf"), float("nan")
#: Margin at which exp(-margin) is half a rounding of 1 and vanishes beside it.
THRESHOLDS = {torch.float16: 7.62, torch.bfloat16: 5.55, torch.float32: 16.64, torch.float64: 36.74}


@pytest.mark.parametrize(("dtype", "margin"), THRESHOLDS.items())
def test_threshold_of_every_dtype(dtype: torch.dtype, margin: float) -> None:
    assert margin == pytest.approx(-math.log(torch.finfo(dtype).eps / 2), abs=0.01)
    step = 8 * torch.finfo(dtype).eps * margin + 0.02  # the margin itself is rounded to the dtype
    for offset, want in ((-step, 0.0), (step, 1.0)):
        logits = torch.tensor([[margin + offset, 0.0], [0.0, margin + offset]], dtype=torch.float64)
        assert float(softmax_collapse(logits.to(dtype))) == want
        assert float(softmax_collapse(logits, dtype)) == want
        assert float(softmax_collapse(logits.t(), dtype, dim=0)) == want


def test_collapse_means_zero_loss() -> None:
    logits = 8 * torch.randn(500, 7)
    rows = F.cross_entropy(logits, logits.argmax(1), reduction="none")
    assert 0.0 < float(softmax_collapse(logits)) == pytest.approx(float((rows == 0).float().mean()), abs=0.01)


def test_upcast_logits_hide_the_collapse() -> None:
    logits = torch.tensor([[10.0, 0.0]])
    assert float(softmax_collapse(logits)) == 0.0
    assert float(softmax_collapse(logits, torch.float16)) == 1.0


def test_stablemax_collapses_only_at_ratios_beyond_the_mantissa() -> None:
    logits = torch.tensor([[1e3, -1e3], [1e5, -1e5]])
    assert float(softmax_collapse(logits, normalizer="softmax")) == 1.0
    assert float(softmax_collapse(logits, normalizer="stablemax")) == 0.5  # 1e10 > 2**24 > 1e6


def test_extreme_rows() -> None:
    logits = torch.tensor([[NAN, 1.0], [INF, 1.0], [-INF, 1.0], [-INF, -INF], [0.0, 0.0]])
    assert float(softmax_collapse(logits)) == pytest.approx(0.2)  # only the row with one possible class
    assert float(softmax_collapse(torch.zeros(0, 3))) == 0.0
    assert not softmax_collapse(torch.zeros(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize(("args", "kwargs", "error", "word"), _bad_logits())
def test_bad_logits(args, kwargs, error, word) -> None:
    assert len(list(_bad_logits())) >= 25
    with pytest.raises(error, match=word):
        softmax_collapse(*args, **kwargs)


@pytest.mark.parametrize(("args", "kwargs", "error", "word"), _bad_weights())
def test_bad_weights(args, kwargs, error, word) -> None:
    assert len(list(_bad_weights())) >= 25
    with pytest.raises(error, match=word):
        nlm_alignment(*args, **kwargs)


def test_alignment_along_against_and_across() -> None:
    w = torch.tensor([3.0, 4.0])
    across = torch.tensor([4.0, -3.0])
    assert float(nlm_alignment([w], [-2 * w])) == pytest.approx(1.0)
    assert float(nlm_alignment([w], [w])) == pytest.approx(-1.0)
    assert float(nlm_alignment([w], [across])) == 0.0
    assert float(nlm_alignment([w], [torch.zeros(2)])) == 0.0
    assert float(nlm_alignment([w, w], [-w, across])) == pytest.approx(0.5)  # over the whole vector
    assert math.isnan(nlm_alignment([w], [torch.tensor([NAN, 0.0])]))
    z = torch.tensor([1 + 1j])
    assert float(nlm_alignment([z], [-z])) == pytest.approx(1.0)
    assert float(nlm_alignment([z], [1j * z])) == pytest.approx(0.0)


def test_alignment_of_a_fitted_homogeneous_network() -> None:
    """Once all rows are right by a margin, the gradient of a bias-free network points along the weights."""
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(6 * torch.eye(4))
    F.cross_entropy(model(torch.eye(4)), torch.arange(4)).backward()
    assert float(nlm_alignment(model)) > 0.85
    model.bias = nn.Parameter(torch.zeros(4))  # without gradient: left out
    assert float(nlm_alignment(model)) > 0.85


def test_monitor_warns_once_and_keeps_a_history() -> None:
    monitor = CollapseMonitor(threshold=0.01, every=2, keep=2)
    fine, collapsed = torch.zeros(4, 3), torch.tensor([[99.0, 0.0, 0.0]])
    assert monitor(fine) == 0.0
    assert monitor(collapsed) is None  # not due
    with pytest.warns(CollapseWarning, match=r"100\.0% of the rows of batch 2.*float32"):
        assert monitor(collapsed) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor(fine)
        assert monitor(collapsed) == 1.0
    assert list(monitor.history) == [(2, 1.0), (4, 1.0)]


def test_monitor_watches_a_module_while_it_trains() -> None:
    model = nn.Linear(2, 2)
    monitor = CollapseMonitor(threshold=1.0)
    handle = monitor.watch(model)
    model(torch.zeros(3, 2))
    model.eval()(torch.zeros(3, 2))
    handle.remove()
    model.train()(torch.zeros(3, 2))
    assert len(monitor.history) == 1


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        *(({"threshold": v}, ValueError, "threshold") for v in (-0.1, 1.1, NAN)),
        *(({"threshold": v}, TypeError, "threshold") for v in (None, "0.1", True)),
        *(({name: v}, ValueError, name) for name in ("every", "keep") for v in (0, -1)),
        *(({name: v}, TypeError, name) for name in ("every", "keep") for v in (None, 1.0, True)),
        ({"normalizer": "sigmoid"}, ValueError, "normalizer"),
    ],
)
def test_bad_monitors(options, error, word) -> None:
    with pytest.raises(error, match=word):
        CollapseMonitor(**options)
