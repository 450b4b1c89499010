"""The two losses of jointly learned exits, their targets and the phases that use them."""

from __future__ import annotations

import math

import pytest
import torch
from exit_nets import with_exits
from torch.nn import functional as F

from softgate.dynamic import JEILoss, best_exit, exit_gate_loss, exit_inference_loss
from softgate.errors import ArgumentTypeError, ArgumentValueError

COSTS = torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=torch.float64)


def _case(rows: int = 30, dtype: torch.dtype = torch.float64):
    logits = torch.randn(4, rows, 3, dtype=dtype)
    return logits, torch.randint(3, (rows,)), torch.rand(rows, 4, dtype=dtype).softmax(-1)


def _cross_entropies(logits, target):
    return torch.stack([F.cross_entropy(z, target, reduction="none") for z in logits], -1)


def test_weightings() -> None:
    logits, target, p = _case()
    ce = _cross_entropies(logits, target)
    for weighting, expected in (
        ("probability", (p * ce).sum(1).mean()), ("uniform", ce[:, :-1].mean()), ("normalized", ce[:, :-1].mean()),
    ):  # fmt: skip
        torch.testing.assert_close(exit_inference_loss(logits, target, p, weighting), expected)
    logits.requires_grad_()
    normalized, uniform, weighted = (
        torch.autograd.grad(exit_inference_loss(logits, target, p, w), logits)[0][:-1]
        for w in ("normalized", "uniform", "probability")
    )
    # the detached factor leaves the direction of the weighted loss; that of the authors' code would be the uniform one
    torch.testing.assert_close(normalized / normalized.norm(), weighted / weighted.norm())
    assert float(F.cosine_similarity(normalized.flatten(), uniform.flatten(), dim=0)) < 0.99


def test_the_best_exit_by_hand() -> None:
    # probabilities of the true class: 0.5, 0.6, 0.9, 0.9
    p = torch.tensor([0.5, 0.6, 0.9, 0.9], dtype=torch.float64)
    logits = torch.stack([p, 1 - p], -1).log()[:, None]
    target = torch.tensor([0])
    assert int(best_exit(logits, target, COSTS, 0.0)) == 2, "of equal exits the first"
    assert int(best_exit(logits, target, COSTS, 1.0)) == 2 and int(best_exit(logits, target, COSTS, 2.0)) == 0
    gain = math.log(0.9 / 0.5) / (0.7 - 0.2)
    assert [int(best_exit(logits, target, COSTS, lam)) for lam in (gain - 1e-9, gain + 1e-9)] == [2, 0]
    assert int(best_exit(logits, target, COSTS, 0.0, "prob")) == 2
    assert int(best_exit(logits, target, COSTS, 0.0, "zero_one")) == 0
    assert int(best_exit(logits, 1 - target, COSTS, 0.0, "prob")) == 0, "none is right: the first of equals"


def test_a_price_of_zero_ignores_cost_and_a_high_one_everything_else() -> None:
    logits, target, _ = _case(200)
    assert torch.equal(best_exit(logits, target, COSTS, 0.0), _cross_entropies(logits, target).argmin(-1))
    assert best_exit(logits, target, COSTS, 1e6).tolist() == [0] * 200
    means = [float(COSTS[best_exit(logits, target, COSTS, lam)].mean()) for lam in (0.0, 0.3, 1.0, 3.0, 30.0)]
    assert means == sorted(means, reverse=True) and means[0] > means[-1]


def test_an_exit_that_is_nan_is_never_best() -> None:
    logits, target, _ = _case()
    logits[1, :10] = float("nan")
    best = best_exit(logits, target, COSTS, 0.0)
    assert bool((best[:10] != 1).all()) and bool((best[10:] == 1).any())


def test_every_gate_from_the_best_exit_on_shall_open() -> None:
    gates, best = torch.randn(20, 3), torch.randint(4, (20,))
    target = torch.tensor([[float(place >= b) for place in range(3)] for b in best.tolist()])
    assert bool((target.diff(dim=1) >= 0).all())
    torch.testing.assert_close(exit_gate_loss(gates, best), F.binary_cross_entropy_with_logits(gates, target))
    w = torch.tensor([1.0, 5.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(gates, target, pos_weight=w)
    torch.testing.assert_close(exit_gate_loss(gates, best, w), expected)


def test_no_samples_no_loss() -> None:
    logits, target, p = _case(0)
    assert float(exit_inference_loss(logits, target, p)) == 0.0
    assert float(exit_inference_loss(logits, target, p, "normalized")) == 0.0
    assert float(exit_gate_loss(torch.zeros(0, 3), target)) == 0.0


def test_phases_are_the_losses() -> None:
    model, x, y = with_exits(), torch.randn(25, 12), torch.randint(5, (25,))
    out, loss = model(x), JEILoss(0.7, weighting="hard", objective="prob")
    torch.testing.assert_close(loss(out, y, "inference"), exit_inference_loss(out.logits, y, out.P, "hard"))
    best = best_exit(out.logits, y, out.costs, 0.7, "prob")
    torch.testing.assert_close(loss(out, y, "gate"), exit_gate_loss(out.gate_logits, best))
    ce = _cross_entropies(out.logits, y).mean(0)
    torch.testing.assert_close(loss(out, y, "warmup"), (torch.tensor([4.0, 3.0, 2.0, 1.0]) * ce).sum())


def test_weights_of_positives() -> None:
    model, x, y = with_exits(), torch.randn(60, 12), torch.randint(5, (60,))
    out = model(x)
    best = best_exit(out.logits, y, out.costs, 0.7).tolist()
    found = {}
    for kind in ("none", "cumulative", "official"):
        loss = JEILoss(0.7, pos_weight=kind)
        loss.update_pos_weight(out, y)
        found[kind] = loss.positive
    assert found["none"] is None
    for kind, count in (("cumulative", [sum(b <= e for b in best) for e in range(3)]),
                        ("official", [best.count(e) for e in range(3)])):  # fmt: skip
        assert found[kind].tolist() == pytest.approx([min((60 - n) / max(n, 0.1), 5.0) for n in count])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lam": -1.0}, ArgumentValueError), ({"lam": float("inf")}, ArgumentValueError),
        ({"lam": "1"}, ArgumentTypeError), ({"weighting": "boosted"}, ArgumentValueError),
        ({"pos_weight": 1.0}, ArgumentTypeError), ({"objective": "ace"}, ArgumentValueError),
    ],
)  # fmt: skip
def test_bad_settings(options, error) -> None:
    with pytest.raises(error, match=next(iter(options))):
        JEILoss(**{"lam": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "word"),
    [({"costs": [0.5, 0.4, 0.7, 1.0]}, "costs"), ({"costs": [0.1, 0.2, 1.0]}, "costs"), ({"lam": -0.1}, "lam"),
     ({"costs": [0.0, 0.4, 0.7, 1.0]}, "costs"), ({"target": torch.tensor([3] * 30)}, "target")],
)  # fmt: skip
def test_bad_targets(options, word) -> None:
    logits, target, _ = _case()
    given = {"target": target, "costs": COSTS, "lam": 0.5, **options}
    with pytest.raises(ArgumentValueError, match=word):
        best_exit(logits, **given)
