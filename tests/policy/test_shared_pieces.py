"""Aggregation, group advantages and KL estimates against definitions written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.policy import AGGREGATIONS, aggregate, group_advantages, kl_estimate, sapo_loss

LENGTHS = (4, 2, 0, 1)


def _rows() -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.randn(4, 4, dtype=torch.float64)
    return losses, torch.arange(4) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("empty", ["keep", "drop"])
@pytest.mark.parametrize("how", AGGREGATIONS)
def test_aggregations_by_hand(how: str, empty: str) -> None:
    losses, mask = _rows()
    rows = [[float(losses[i, t]) for t in range(n)] for i, n in enumerate(LENGTHS)]
    counted = 4 if empty == "keep" else 3
    total = sum(map(sum, rows))
    expected = {
        "seq_mean_token_mean": sum(sum(r) / max(len(r), 1) for r in rows) / counted,
        "token_mean": total / sum(LENGTHS),
        "token_mean_global": total / 20,
        "token_sum_norm": total / counted / 5,
        "seq_mean_token_sum": total / counted,
    }[how]
    found = aggregate(losses, mask, how, empty=empty, max_length=5, num_tokens=20)
    assert found.item() == pytest.approx(expected)
    spoiled = torch.where(mask, losses, math.nan)
    assert aggregate(spoiled, mask.long(), how, empty=empty, max_length=5, num_tokens=20).item() == found.item()
    padded = aggregate(torch.nn.functional.pad(losses, (0, 3)), torch.nn.functional.pad(mask, (0, 3)), how,
                       empty=empty, max_length=5, num_tokens=torch.tensor(20))  # fmt: skip
    torch.testing.assert_close(padded, found)


def test_one_value_per_sequence_stands_at_every_token() -> None:
    _, mask = _rows()
    losses = torch.randn(4, 1, dtype=torch.float64)
    for how in ("seq_mean_token_mean", "seq_mean_token_sum", "token_mean"):
        torch.testing.assert_close(aggregate(losses, mask, how), aggregate(losses.expand(4, 4), mask, how))


def test_micro_batches_add_up_to_the_batch() -> None:
    old = -torch.rand(8, 5, dtype=torch.float64) - 1
    logp = (old + 0.3 * torch.randn(8, 5, dtype=torch.float64)).clamp(max=-0.01).requires_grad_()
    mask = torch.arange(5) < torch.randint(1, 6, (8,))[:, None]
    advantages = torch.randn(8, dtype=torch.float64)
    options = {"aggregation": "token_mean_global", "num_tokens": float(mask.sum())}
    whole = sapo_loss(logp, old, advantages, mask, **options)
    parts = sum(sapo_loss(logp[i : i + 2], old[i : i + 2], advantages[i : i + 2], mask[i : i + 2], **options)
                for i in range(0, 8, 2))  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(*(torch.autograd.grad(value, logp)[0] for value in (parts, whole)))


@pytest.mark.parametrize("convention", ["trl", "verl"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_by_hand(scale: str, convention: str) -> None:
    rewards = torch.tensor([1.0, 0.5, 3.0, -2.0, 0.0, 7.0], dtype=torch.float64)
    group = torch.tensor([5, -1, 5, -1, 5, 9])
    found = group_advantages(rewards, group, scale=scale, convention=convention, eps=1e-3, allow_singletons=True)
    for label in (5, -1):
        members = rewards[group == label]
        deviation = {"group": members.std(), "batch": rewards.std(), "none": torch.tensor(1 - 1e-3)}[scale]
        torch.testing.assert_close(found[group == label], (members - members.mean()) / (deviation + 1e-3))
    alone = {"trl": 0.0, "verl": 7.0 / (1 if scale == "none" else 1.001)}[convention]
    assert found[-1].item() == pytest.approx(alone)


def test_equal_rewards_give_exactly_zero() -> None:
    rewards = torch.tensor([0.1] * 7 + [0.3, 0.3, 0.3])  # means of these are not these numbers in floating point
    group = torch.tensor([0] * 7 + [1] * 3)
    for scale in ("group", "batch", "none"):
        assert (group_advantages(rewards, group, scale=scale, eps=0.0)[:7] == 0).all()
        assert (group_advantages(rewards, group, scale=scale, eps=0.0)[7:] == 0).all()


def test_rewards_that_do_not_apply_are_left_out() -> None:
    rewards = torch.tensor([1.0, math.nan, 3.0, math.nan, math.nan, 2.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    found = group_advantages(rewards, group)
    expected = group_advantages(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    torch.testing.assert_close(found[[0, 2]], expected)
    assert (found[[1, 3, 4, 5]] == 0).all()


def test_order_of_the_rows_does_not_matter() -> None:
    rewards, group = torch.randn(24), torch.arange(24) % 6
    order = torch.randperm(24)
    torch.testing.assert_close(group_advantages(rewards[order], group[order]), group_advantages(rewards, group)[order])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((torch.ones(3), torch.tensor([0, 0, 1])), {}, ValueError, r"group sizes \[2, 1\]"),
        ((torch.ones(3), torch.zeros(2, dtype=torch.long)), {}, ValueError, "group_id"),
        ((torch.ones(3, 1), torch.zeros(3, dtype=torch.long)), {}, ValueError, "rewards"),
        ((torch.ones(3), torch.zeros(3)), {}, TypeError, "group_id"),
        ((torch.ones(3, dtype=torch.long), torch.zeros(3, dtype=torch.long)), {}, TypeError, "rewards"),
        ((torch.ones(2), torch.zeros(2, dtype=torch.long)), {"scale": "row"}, ValueError, "scale"),
        ((torch.ones(2), torch.zeros(2, dtype=torch.long)), {"eps": -1.0}, ValueError, "eps"),
        ((torch.ones(2), torch.zeros(2, dtype=torch.long)), {"convention": "dapo"}, ValueError, "convention"),
        ((torch.ones(2), torch.zeros(2, dtype=torch.long)), {"allow_singletons": 1}, TypeError, "allow_singletons"),
    ],
    ids=["singleton", "length", "2-d", "float labels", "int rewards", "scale", "eps", "convention", "flag"],
)
def test_bad_groups(arguments, options, error, word) -> None:
    with pytest.raises(error, match=word):
        group_advantages(*arguments, **options)


def test_kl_estimates() -> None:
    logp = (-torch.rand(200, dtype=torch.float64) * 3).requires_grad_()
    ref = logp.detach() + torch.randn(200, dtype=torch.float64)
    d = ref - logp
    for kind, expected in (("k1", -d), ("k2", d**2 / 2), ("k3", d.exp() - d - 1), ("abs", d.abs())):
        torch.testing.assert_close(kl_estimate(logp, ref, kind), expected)
    tiny = torch.linspace(-1e-3, 1e-3, 2001)
    estimate = kl_estimate(tiny, torch.zeros(2001))
    assert (estimate >= 0).all() and ((estimate == 0) <= (tiny.abs() < 2e-7)).all()
    (slope,) = torch.autograd.grad(kl_estimate(logp, ref).sum(), logp)
    torch.testing.assert_close(slope, 1 - d.detach().exp())
    assert kl_estimate(torch.tensor([0.0]), torch.tensor([1e4])).isfinite()
    for arguments, word in (((logp, ref, "k9"), "kind"), ((logp, ref[:3]), "ref_logp")):
        with pytest.raises(ValueError, match=word):
            kl_estimate(*arguments)


def test_bad_aggregations() -> None:
    losses, mask = _rows()
    for options, word in (
        ({"how": "sum"}, "aggregation"),
        ({"how": "token_sum_norm"}, "max_length"),
        ({"how": "token_mean_global"}, "num_tokens"),
        ({"empty": "skip"}, "empty"),
    ):
        with pytest.raises(ValueError, match=word):
            aggregate(losses, mask, **options)
    with pytest.raises(ValueError, match="losses_BT"):
        aggregate(losses[:, :3], mask)
    with pytest.raises(TypeError, match="mask"):
        aggregate(losses, [[1]])
