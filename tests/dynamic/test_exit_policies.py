"""Thresholds for a budget, conformal sets by exit, calibration."""

from __future__ import annotations

import pytest
import torch
from exit_nets import with_exits

from softgate.dynamic import ConformalExit, ExitOutput, ThresholdPolicy, expected_calibration_error
from softgate.dynamic.conformal_sets import conformal_quantile
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError


def _outputs(rows: int, seed: int = 0, classes: int = 4) -> tuple[ExitOutput, torch.Tensor]:
    """Exits that know more the later they are, on classes drawn from the last one's probabilities."""
    generator = torch.Generator().manual_seed(seed)
    truth = 2.0 * torch.randn(rows, classes, generator=generator)
    noise = torch.randn(4, rows, classes, generator=generator) * torch.tensor([2.0, 1.0, 0.5, 0.0])[:, None, None]
    target = torch.multinomial(truth.softmax(-1), 1, generator=generator).squeeze(-1)
    logits, level = truth + noise, torch.randint(4, (rows,), generator=generator)
    costs = torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    y_logits = logits[level, torch.arange(rows)]
    return ExitOutput(logits, torch.zeros(rows, 3), torch.full((rows, 4), 0.25), level, y_logits, costs), target


@pytest.mark.parametrize("confidence", ["probability", "logit", "entropy"])
def test_thresholds_meet_their_budget(confidence) -> None:
    out, _ = _outputs(2000)
    for budget in (0.3, 0.5, 0.8):
        policy = ThresholdPolicy(confidence).fit(out, budget)
        cost = float(out.costs[policy.level(out)].mean())
        assert budget - 0.005 < cost <= budget
        other, _ = _outputs(2000, seed=5)
        assert float(other.costs[policy.level(other)].mean()) == pytest.approx(budget, abs=0.05)


def test_a_ratio_shares_out_the_samples() -> None:
    out, _ = _outputs(1000)
    left = ThresholdPolicy().fit(out, ratio=0.5).level(out).bincount(minlength=4)
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0]) / 15
    assert torch.equal(left[:-1], (1000 * weights).floor().long()[:-1])
    policy = ThresholdPolicy().fit(out, ratio=0.5)
    leaves = policy.scores(out) >= policy.thresholds[:, None]
    assert policy.level(out).tolist() == [next((e for e in range(3) if row[e]), 3) for row in leaves.T.tolist()]


def test_patience_counts_exits_that_agree() -> None:
    logits = torch.zeros(4, 3, 2)
    for sample, votes in enumerate([(0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 0, 0)]):
        for place, vote in enumerate(votes):
            logits[place, sample, vote] = 1.0
    out = _outputs(3, classes=2)[0]
    out = ExitOutput(logits, out.gate_logits, out.P, out.level, out.y_logits, out.costs)
    policy = ThresholdPolicy("patience")
    assert policy.scores(out).T.tolist() == [[1, 2, 3], [1, 1, 2], [1, 1, 1]]
    assert policy.fit(out, (0.5 + 0.7 + 1.0) / 3).level(out).tolist() == [1, 2, 3]
    assert policy.fit(out, 1.0).level(out).tolist() == [3, 3, 3] and policy.fit(out, 0.2).level(out).tolist() == [0] * 3


def test_sets_cover_the_true_class_as_often_as_they_say() -> None:
    out, target = _outputs(6000)
    calibration, fresh = torch.arange(6000) < 3000, torch.arange(6000) >= 3000

    def part(rows):
        return ExitOutput(out.logits[:, rows], out.gate_logits[rows], out.P[rows], out.level[rows],
                          out.y_logits[rows], out.costs)  # fmt: skip

    for alpha in (0.05, 0.2):
        sets = ConformalExit().fit(part(calibration), target[calibration], alpha)
        found = sets.predict(part(fresh).y_logits, part(fresh).level)
        covered = found.gather(1, target[fresh][:, None]).squeeze(1)
        for exit_place in range(4):
            here = covered[part(fresh).level == exit_place].float()
            assert float(here.mean()) >= 1 - alpha - 3 * (2 * alpha * (1 - alpha) / len(here)) ** 0.5
        assert float(covered.float().mean()) <= 1 - alpha + 0.02, "sets that hold everything would cover too"


def test_an_exit_with_few_samples_borrows_those_of_all() -> None:
    out, target = _outputs(200)
    out = ExitOutput(
        out.logits, out.gate_logits, out.P, torch.where(torch.arange(200) < 20, 1, 3), out.y_logits, out.costs
    )
    scores = 1 - out.logits.softmax(-1).double()[:, torch.arange(200), target]
    limits = ConformalExit().fit(out, target, 0.1).thresholds
    assert float(limits[1]) == conformal_quantile(scores[1].numpy(), 0.1)
    assert float(limits[3]) == conformal_quantile(scores[3][20:].numpy(), 0.1)
    assert float(ConformalExit(few=19).fit(out, target, 0.1).thresholds[1]) == float(scores[1][:20].max())


def test_calibration_error_by_hand() -> None:
    p = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
    logits, target = torch.stack([p, 1 - p], -1).log(), torch.tensor([0, 1, 0, 0])
    assert expected_calibration_error(logits, target, bins=2) == pytest.approx(0.5 * abs(0.5 - 0.65) + 0.5 * 0.15)
    assert expected_calibration_error(logits, target, bins=1) == pytest.approx(0.0)
    order = torch.tensor([2, 0, 3, 1])
    assert expected_calibration_error(logits[order], target[order], bins=2) == pytest.approx(0.15)
    assert expected_calibration_error(logits, target) == pytest.approx((0.4 + 0.7 + 0.2 + 0.1) / 4)


def test_bad_calls() -> None:
    out, target = _outputs(30)
    cases = (
        (lambda: ThresholdPolicy("margin"), ArgumentValueError, "confidence"),
        (lambda: ThresholdPolicy().fit(out), ArgumentValueError, "budget"),
        (lambda: ThresholdPolicy().fit(out, 0.1), ArgumentValueError, "budget"),
        (lambda: ThresholdPolicy().fit(out, ratio=0.0), ArgumentValueError, "ratio"),
        (lambda: ThresholdPolicy("patience").fit(out, ratio=1.0), ArgumentValueError, "ratio"),
        (lambda: ThresholdPolicy().level(out), StateError, "fit"),
        (lambda: ThresholdPolicy().fit(with_exits()(torch.zeros(0, 12)), 0.9), ArgumentValueError, "sample"),
        (lambda: ConformalExit(0), ArgumentValueError, "few"),
        (lambda: ConformalExit().fit(out, target, 0.0), ArgumentValueError, "alpha"),
        (lambda: ConformalExit().fit(out, target[:3]), ArgumentValueError, "target"),
        (lambda: ConformalExit().fit(out, target, level=target.int()), ArgumentTypeError, "level"),
        (lambda: ConformalExit().predict(out.y_logits, out.level), StateError, "fit"),
        (lambda: expected_calibration_error(out.y_logits[:0], target[:0]), ArgumentValueError, "logits"),
        (lambda: expected_calibration_error(out.y_logits, target.float()), ArgumentTypeError, "target"),
        (lambda: expected_calibration_error(out.y_logits, target, bins=0), ArgumentValueError, "bins"),
    )
    for call, error, word in cases:
        with pytest.raises(error, match=word):
            call()
