"""The gate's features: closed forms, limits, and that nothing flows back through them."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.dynamic import UncertaintyGate, uncertainty_features


def test_features_are_what_they_are_called() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = p**2 / (p**2).sum()
    entropy, entropy2 = (-float((r * r.log()).sum()) for r in (p, q))
    assert uncertainty_features(p.log()).tolist() == pytest.approx([0.5, entropy, 0.2, entropy2])
    assert uncertainty_features(p.log(), ("margin", "pmax")).tolist() == pytest.approx([0.2, 0.5])
    assert uncertainty_features(torch.zeros(8)).tolist() == pytest.approx([1 / 8, math.log(8), 0, math.log(8)])


@pytest.mark.parametrize("gap", [1e2, 1e4, 1e30, float("inf")])
def test_a_certain_prediction_is_finite(gap) -> None:
    logits = torch.tensor([[0.0, -gap]], requires_grad=True)
    found = uncertainty_features(logits)
    assert found[0].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0], abs=1e-30)
    found.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_a_constant_on_all_logits_changes_nothing() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(uncertainty_features(logits + 3.0), uncertainty_features(logits))


def test_the_gate_sends_nothing_to_the_classifier_and_computes_in_float32() -> None:
    gate = UncertaintyGate()
    logits = torch.randn(4, 5, requires_grad=True)
    gate(logits).sum().backward()
    assert logits.grad is None and gate.linear.weight.grad is not None
    assert gate.to(torch.bfloat16)(logits.bfloat16()).dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert UncertaintyGate()(logits).dtype is torch.float32
    assert bool(gate(torch.full((2, 5), float("nan"))).isnan().all())
