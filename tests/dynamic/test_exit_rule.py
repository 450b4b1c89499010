"""Exit probabilities and levels against loops, closed forms and their limits."""

from __future__ import annotations

import pytest
import torch

from softgate.dynamic import exit_level, exit_probabilities
from softgate.dynamic.exit_losses import _hard_weights


def _looped(gates: list[float]) -> tuple[list[float], int]:
    """Probabilities and level of one sample as the paper writes them, conditional probabilities and all."""
    probabilities: list[float] = []
    for place, gate in enumerate(gates):
        probabilities.append(max(0.0, min(gate, 1.0 - sum(gates[:place]))))
    level = len(gates)
    for place, p in enumerate(probabilities):
        left = 1.0 - sum(probabilities[:place])
        if left > 0.0 and p / left >= 0.5:
            level = place
            break
    return [*probabilities, 1.0 - sum(probabilities)], level


@pytest.mark.parametrize("shift", [-3.0, -1.5, 0.0])
def test_closed_form_is_the_loop(shift) -> None:
    gates = (torch.randn(200, 5, dtype=torch.float64) + shift).sigmoid()
    expected = [_looped(row) for row in gates.tolist()]
    found = exit_probabilities(gates.logit())
    torch.testing.assert_close(found, torch.tensor([p for p, _ in expected], dtype=torch.float64))
    assert exit_level(gates.logit()).tolist() == [level for _, level in expected]
    assert float((found.sum(-1) - 1).abs().max()) < 1e-12 and float(found.min()) >= 0.0
    hard = _hard_weights(found)
    assert torch.equal(hard.argmax(-1), exit_level(gates.logit())) and bool((hard.sum(-1) == 1).all())


def test_limits() -> None:
    shut, wide = torch.full((3, 4), -200.0), torch.full((3, 4), 200.0)
    assert exit_probabilities(shut).tolist() == [[0, 0, 0, 0, 1]] * 3 and exit_level(shut).tolist() == [4] * 3
    assert exit_probabilities(wide).tolist() == [[1, 0, 0, 0, 0]] * 3 and exit_level(wide).tolist() == [0] * 3


def test_a_gate_is_the_probability_until_they_sum_to_one() -> None:
    gates = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    assert exit_probabilities(gates.logit())[:-1].allclose(gates, atol=1e-15)


def test_one_half_of_what_is_left_is_enough() -> None:
    assert int(exit_level(torch.zeros(2))) == 0  # sigmoid(0) is exactly one half
    assert int(exit_level(torch.tensor([-1e-6, -1.0]))) == 1  # 0.27 of all, half of the other half and more


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([-1.5, -0.5, -1.0])
    draws = exit_level(logits.expand(40_000, 3), "sample", generator=torch.Generator().manual_seed(0))
    share = draws.bincount(minlength=4) / 40_000
    assert float((share - exit_probabilities(logits)).abs().max()) < 4 * 0.5 / 200


@pytest.mark.parametrize("rule", ["conditional", "sample"])
def test_nan_goes_to_the_final_head_and_is_marked(rule) -> None:
    gates = torch.tensor([[9.0, float("nan")], [-9.0, float("nan")], [float("nan"), 9.0], [-99.0, -99.0]])
    assert exit_level(gates, rule, generator=torch.Generator().manual_seed(0)).tolist() == [0, -1, -1, 2]


def test_samples_do_not_see_each_other() -> None:
    logits, order = torch.randn(50, 4), torch.randperm(50)
    assert torch.equal(exit_level(logits)[order], exit_level(logits[order]))
    assert torch.equal(exit_probabilities(logits)[order], exit_probabilities(logits[order]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_compute_in_float32(dtype) -> None:
    logits = torch.randn(20, 3).to(dtype)
    assert torch.equal(exit_probabilities(logits), exit_probabilities(logits.float()))
    assert torch.equal(exit_level(logits), exit_level(logits.float()))
