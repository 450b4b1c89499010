"""Comp-sum losses: members of the family, the semantics of F.cross_entropy, extremes, bad input."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import softgate
from softgate.losses import (
    CompSumLoss,
    _row_kernel,
    comp_sum_loss,
    generalized_cross_entropy,
    mae_loss,
    sum_exponential_loss,
)

INF, NAN = float("inf"), float("nan")
TAUS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


@pytest.fixture
def path(request, monkeypatch):
    """Run on the kernel or on the reference; small blocks, so that even small inputs take several."""
    monkeypatch.setenv("SOFTGATE_KERNELS", "auto" if request.param == "blocks" else "reference")
    monkeypatch.setattr(_row_kernel, "BLOCK", 7)
    return request.param


both_paths = pytest.mark.parametrize("path", ["blocks", "reference"], indirect=True)


def with_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def formula(x: Tensor, tau: float) -> Tensor:
    """Phi_tau(u) of the margin sum u of every class, in the paper's own form; classes in the last dimension."""
    u = (x.unsqueeze(-2) - x.unsqueeze(-1)).exp().sum(-1) - 1.0
    return u.log1p() if tau == 1.0 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


@pytest.mark.parametrize("tau", TAUS)
def test_every_target_costs_what_the_formula_says(tau) -> None:
    x, shares = 2 * torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    costs = formula(x, tau)
    for y in range(5):
        got = comp_sum_loss(x, torch.full((6,), y), tau=tau, reduction="none")
        torch.testing.assert_close(got, costs[:, y])
    torch.testing.assert_close(comp_sum_loss(x, shares, tau=tau, reduction="none"), (shares * costs).sum(1))


def test_members() -> None:
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    p = x.softmax(1).gather(1, y[:, None])[:, 0]
    options = {"weight": torch.rand(5, dtype=torch.float64), "label_smoothing": 0.1, "reduction": "sum"}
    torch.testing.assert_close(comp_sum_loss(x, y, **options), F.cross_entropy(x, y, **options))
    torch.testing.assert_close(mae_loss(x, y, reduction="none"), 1 - p)
    torch.testing.assert_close(generalized_cross_entropy(x, y, reduction="none"), (1 - p**0.7) / 0.7)
    torch.testing.assert_close(generalized_cross_entropy(x, y, q=0.0), F.cross_entropy(x, y))
    torch.testing.assert_close(sum_exponential_loss(x, y, reduction="none"), 1 / p - 1)
    for member, tau in ((mae_loss, 2.0), (generalized_cross_entropy, 1.7), (sum_exponential_loss, 0.0)):
        torch.testing.assert_close(member(x, y, **options), comp_sum_loss(x, y, **options, tau=tau))
    assert float(sum_exponential_loss(x, y, max_weight=1.0)) <= float(F.cross_entropy(x, y)) + 1e-12


@both_paths
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 5), (2, 3, 2, 4)])
def test_reductions_weights_smoothing_and_ignored_labels(path, tau, shape) -> None:
    """Every option is linear in the losses of the classes, which tells what each must give."""
    x = torch.randn(shape, dtype=torch.float64)
    axis = min(1, len(shape) - 1)
    labels = torch.randint(shape[axis], shape[:axis] + shape[axis + 1 :])
    if labels.numel() > 1:
        labels.view(-1)[0] = -100
    keep = labels != -100
    weight = torch.rand(shape[axis], dtype=torch.float64) + 0.1
    costs = formula(x.movedim(axis, -1), tau)
    for w, reduction, e in itertools.product((None, weight), ("mean", "sum", "none"), (0.0, 0.2)):
        scale = torch.ones_like(weight) if w is None else w
        hot = F.one_hot(labels.clamp(min=0), shape[axis])
        rows = (((1 - e) * hot + e / shape[axis]) * scale * costs).sum(-1) * keep
        want = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / (scale[labels.clamp(min=0)] * keep).sum()}
        got = comp_sum_loss(x, labels, w, -100, reduction, e, tau=tau)
        torch.testing.assert_close(got, want[reduction])
    assert softgate.explain(comp_sum_loss, x, labels, tau=tau).chosen == path


@both_paths
@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_the_weighted_one_of_cross_entropy(path, tau) -> None:
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    _, slope = with_gradient(lambda z: comp_sum_loss(z, y, tau=tau, reduction="sum"), x)
    p = x.softmax(1)
    weight = p.gather(1, y[:, None]) ** (tau - 1)
    torch.testing.assert_close(slope, weight * (p - F.one_hot(y, 5)))


def test_continuous_and_monotone_in_tau() -> None:
    x, y = 3 * torch.randn(50, 7), torch.randint(7, (50,))
    middle = F.cross_entropy(x, y, reduction="none")
    for tau in (1 - 1e-6, 1 + 1e-6, 1 - 1e-15, 1 + 1e-15):
        torch.testing.assert_close(comp_sum_loss(x, y, tau=tau, reduction="none"), middle, rtol=2e-5, atol=1e-6)
    losses = torch.stack([comp_sum_loss(x, y, tau=tau, reduction="none") for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 4.0)])
    assert bool((losses.diff(dim=0) < 0).all())


@both_paths
@pytest.mark.parametrize("tau", TAUS)
def test_confident_rows_keep_relative_precision(path, tau) -> None:
    """The target leads by 60: 1 - p_y is far below the rounding of 1, and the loss is the margin sum."""
    value, slope = with_gradient(lambda z: comp_sum_loss(z, torch.tensor([0]), tau=tau), torch.tensor([[60.0, 0, -1]]))
    rest = math.exp(-60) * (1 + math.exp(-1))
    assert float(value) == pytest.approx(rest, rel=1e-5)
    assert slope[0].tolist() == pytest.approx([-rest, math.exp(-60), math.exp(-61)], rel=1e-5)


@both_paths
@pytest.mark.parametrize("tau", TAUS)
def test_wrong_rows_never_give_a_gradient_of_nan(path, tau) -> None:
    x = torch.tensor([[-60.0, 0.0, 1.0], [-100.0, 0.0, 1.0], [-3e4, 0.0, 1.0], [-INF, 0.0, 1.0]])
    y = torch.zeros(4, dtype=torch.int64)
    value, slope = with_gradient(lambda z: comp_sum_loss(z, y, tau=tau, reduction="none"), x)
    assert bool(slope.isfinite().all()) and not bool(value.isnan().any())
    log_p = -60 - math.log(math.exp(-60) + 1 + math.e)
    assert -float(slope[0, 0]) == pytest.approx(math.exp((tau - 1) * log_p), rel=2e-5)
    if tau > 1:
        assert value[3].item() == pytest.approx(1 / (tau - 1)) and slope[3].tolist() == [0.0, 0.0, 0.0]
    else:
        assert value[3].item() == INF and float(slope[3].abs().max()) >= 0.5


@both_paths
def test_max_weight_is_the_largest_pull_of_a_row(path) -> None:
    x, y = torch.tensor([[-40.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, dtype=torch.int64)
    _, slope = with_gradient(lambda z: comp_sum_loss(z, y, tau=0.0, max_weight=10.0, reduction="sum"), x)
    assert slope[:, 0].tolist() == pytest.approx([-10.0, -math.e], rel=1e-5)


@both_paths
@pytest.mark.parametrize("options", [{"tau": 0.5}, {"tau": 1.6}, {"tau": 0.0, "max_weight": 2.0, "temperature": 0.5}])
def test_gradients_of_all_orders(path, options) -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, -100, 4])
    shares = torch.rand(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: comp_sum_loss(z, y, **options), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda z: comp_sum_loss(z, y, **options), x, check_batched_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: comp_sum_loss(z, t, **options), (x, shares.requires_grad_()))


@both_paths
def test_temperature_divides_the_logits(path) -> None:
    x, y = torch.randn(6, 5), torch.randint(5, (6,))
    got = comp_sum_loss(x, y, tau=1.5, temperature=0.3)
    torch.testing.assert_close(got, comp_sum_loss(x / 0.3, y, tau=1.5))
    half = x.bfloat16()
    assert torch.equal(
        comp_sum_loss(half, y, tau=1.5, temperature=0.3), comp_sum_loss(half.float() / 0.3, y, tau=1.5).bfloat16()
    )


def test_everything_ignored_is_nan_as_in_torch() -> None:
    x, y = torch.randn(3, 4), torch.full((3,), 7)
    assert math.isnan(comp_sum_loss(x, y, ignore_index=7, tau=1.5))
    assert float(comp_sum_loss(x, y, ignore_index=7, reduction="sum", tau=1.5)) == 0.0


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, -100, 4, 3])
    compiled = torch.compile(comp_sum_loss, fullgraph=True)
    for tau in (0.5, 1.5):
        got = with_gradient(lambda z, t=tau: compiled(z, y, tau=t), x)
        torch.testing.assert_close(got, with_gradient(lambda z, t=tau: comp_sum_loss(z, y, tau=t), x))


def test_module() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module = CompSumLoss(weight, 1, "sum", 0.1, tau=1.7, temperature=2.0, max_weight=5.0)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    want = comp_sum_loss(x, y, weight, 1, "sum", 0.1, tau=1.7, temperature=2.0, max_weight=5.0)
    assert torch.equal(module(x, y), want)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x, y), want)
    other = CompSumLoss(torch.zeros(3), 1, "sum", 0.1, tau=1.7, temperature=2.0, max_weight=5.0)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x, y), want)
    assert "tau=1.7" in repr(module)
    torch.testing.assert_close(CompSumLoss()(x, y), F.cross_entropy(x, y))
    with pytest.raises(ValueError, match="tau"):
        CompSumLoss(tau=-1.0)


X, Y = torch.randn(3, 4), torch.tensor([0, 3, 1])


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        *(({"tau": v}, ValueError, "tau") for v in (-0.1, NAN, INF, 1e7)),
        *(({"tau": v}, TypeError, "tau") for v in (None, "1", True, [1.0])),
        *(({"temperature": v}, ValueError, "temperature") for v in (0.0, -1.0, INF, NAN)),
        *(({"temperature": v}, TypeError, "temperature") for v in (None, "1", True)),
        *(({"max_weight": v}, ValueError, "max_weight") for v in (0.5, -1.0, INF, NAN)),
        *(({"max_weight": v}, TypeError, "max_weight") for v in ("1", True)),
        ({"reduction": "average"}, ValueError, "reduction"),
        ({"target": Y + 2}, ValueError, "target"),
    ],
)
def test_bad_calls_name_the_argument(options, error, word) -> None:
    with pytest.raises(error, match=word):
        comp_sum_loss(**{"input": X, "target": Y, **options})


def test_members_check_their_arguments() -> None:
    for q in (-0.1, NAN, 1e7):
        with pytest.raises(ValueError, match="q must"):
            generalized_cross_entropy(X, Y, q=q)
    with pytest.raises(ValueError, match="max_weight"):
        sum_exponential_loss(X, Y, max_weight=0.0)
    with pytest.raises(TypeError, match="target"):
        mae_loss(X, [0, 3, 1])
