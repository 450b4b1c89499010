"""Groups that stay runs of rows have the loss and the gradient that padded lists have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import softgate
from softgate.policy import adpo_loss
from softgate.policy._runs import Runs

IDS = {
    "sorted": torch.tensor([-3, -3, -3, 0, 4, 4, 4, 4, 9, 9]),
    "runs-not-in-order": torch.tensor([4, 4, 9, 9, 9, 9, -3, 0, 0, 0]),
    "mixed": torch.tensor([4, 9, 4, -3, 0, 9, 9, 4, 0, 9]),
    "one-group": torch.full((10,), 7),
    "all-alone": torch.arange(10),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "raw": {},
    "zscore": {"target": "zscore", "reduction": "sum"},
    "kde": {"target": "kde", "tau": 0.7, "clamp_ratio": 0.4},
    "top1": {"target": "top1", "reduction": "none", "clamp_score": 0.5},
}


def _tensors(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    logp, anchor = (-2 - torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = torch.randint(4, shape[:1], generator=generator).double()
    return [logp, anchor, scores]


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", [(10,), (10, 3)], ids=["answers", "tokens"])
def test_runs_are_lists_without_the_padding(monkeypatch, ids, case, shape) -> None:
    tensors, found = _tensors(*shape), {}
    upstream = torch.linspace(1, 2, len(IDS[ids].unique()), dtype=torch.float64)
    for kernels in ("auto", "reference"):
        monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
        leaf = tensors[0].clone().requires_grad_()
        value = adpo_loss(leaf, *tensors[1:], IDS[ids], **OPTIONS[case])
        (grad,) = torch.autograd.grad(value, leaf, upstream if value.ndim else None)
        found[kernels] = [value.detach(), grad]
    torch.testing.assert_close(found["auto"], found["reference"])
    assert ids == "all-alone" or found["auto"][1].abs().max() > 1e-3


def test_it_is_chosen_for_ids_and_has_derivatives_of_all_orders() -> None:
    logp, anchor, scores = _tensors(10)
    assert softgate.explain(adpo_loss, logp, anchor, scores, IDS["mixed"]).chosen == "runs"
    assert softgate.explain(adpo_loss, logp, anchor, scores, 5).chosen == "reference"
    tau = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return adpo_loss(x, anchor, scores, IDS["mixed"], tau=tau, reduction="none")

    leaf = logp.requires_grad_()
    assert torch.autograd.gradcheck(loss, leaf, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, leaf)


def test_an_impossible_answer_costs_nothing_unless_it_is_wanted() -> None:
    ids, inf = torch.tensor([0, 0, 0, 1, 1]), float("inf")
    leaf = torch.tensor([-1.0, -2.0, -inf, -inf, -1.0]).requires_grad_()
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    losses = adpo_loss(leaf, torch.zeros(5), scores, ids, target="top1", reduction="none")
    assert losses[0].isfinite() and losses[1] == inf
    (grad,) = torch.autograd.grad(losses[0], leaf)
    p = torch.tensor([-1.0, -2.0]).softmax(0)
    torch.testing.assert_close(grad, torch.tensor([p[0] - 1, p[1], 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("ids", IDS)
def test_runs_hold_every_row_once_in_the_order_of_ids(ids) -> None:
    runs, given = Runs.of(IDS[ids]), IDS[ids]
    assert (runs.order is None) == bool((given.sort().values == given).all())
    ordered = runs.rows(given)
    assert torch.equal(ordered, given.sort().values)
    assert torch.equal(runs.spread(given.unique()), ordered)
    assert torch.equal(runs.sizes, given.unique(return_counts=True)[1])
