"""L2-SVM and Crammer-Singer losses: closed forms, other implementations, labels of all kinds, modules."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import softgate
from softgate.errors import ArgumentValueError
from softgate.losses import CrammerSingerLoss, L2SVMLoss, _row_kernel, crammer_singer_loss, l2_svm_loss

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["blocks", "reference"])
def path(request, monkeypatch):
    """Run on the kernel or on the reference; small blocks, so that even small inputs take several."""
    monkeypatch.setenv("SOFTGATE_KERNELS", "auto" if request.param == "blocks" else "reference")
    monkeypatch.setattr(_row_kernel, "BLOCK", 7)
    return request.param


def brute_force(x: np.ndarray, y: np.ndarray, m: float, power: int) -> tuple[np.ndarray, np.ndarray]:
    """One-vs-rest and Crammer-Singer row losses by loops."""
    ovr, cs = np.zeros(len(y)), np.zeros(len(y))
    for n, label in enumerate(y):
        for k, score in enumerate(x[n]):
            ovr[n] += max(0.0, m - (1 if k == label else -1) * score) ** power
        rivals = [score for k, score in enumerate(x[n]) if k != label]
        cs[n] = max(0.0, m + max(rivals) - x[n, label]) ** power
    return ovr, cs


@pytest.mark.parametrize(("hinge", "power"), [("squared", 2), ("linear", 1)])
@pytest.mark.parametrize("m", [1.0, 0.3])
def test_closed_form_with_weights_ignored_rows_and_reductions(path, hinge, power, m) -> None:
    x, y = 2 * torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    weight = torch.rand(5, dtype=torch.float64) + 0.2
    target = y.clone()
    target[2] = -100
    keep = (target != -100).numpy()
    for loss, rows in zip((l2_svm_loss, crammer_singer_loss), brute_force(x.numpy(), y.numpy(), m, power), strict=True):
        for w, C in ((None, 1.0), (weight, 0.7)):
            scale = np.ones(9) if w is None else w.numpy()[y]
            options = {"weight": w, "C": C, "margin": m, "hinge": hinge}
            single = loss(x, target, reduction="none", **options)
            np.testing.assert_allclose(single.numpy(), C * rows * scale * keep, rtol=1e-12)
            np.testing.assert_allclose(
                float(loss(x, target, reduction="sum", **options)), (C * rows * scale * keep).sum(), rtol=1e-12
            )
            mean = (C * rows * scale * keep).sum() / (scale * keep).sum()
            np.testing.assert_allclose(float(loss(x, target, **options)), mean, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3), (2, 4, 3, 2)])
@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
def test_shapes_of_cross_entropy(path, loss, shape) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    axis = min(1, len(shape) - 1)
    y = torch.randint(4, shape[:axis] + shape[axis + 1 :])
    rows = loss(x, y, reduction="none")
    assert rows.shape == y.shape
    flat = loss(x.movedim(axis, -1).reshape(-1, 4), y.reshape(-1), reduction="none")
    torch.testing.assert_close(rows.reshape(-1), flat)
    assert loss(x, y).shape == ()


def test_crammer_singer_beside_weston_watkins() -> None:
    """With two classes both compare the target with its only rival; torch divides by the number of classes."""
    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randint(2, (20,))
    for hinge, p in (("linear", 1), ("squared", 2)):
        torch.testing.assert_close(crammer_singer_loss(x, y, hinge=hinge), 2 * F.multi_margin_loss(x, y, p=p))


def test_gradient_is_the_paper_s(path) -> None:
    """dL/df = -2 C y max(0, 1 - y f) / (N classes) in the authors' normalisation."""
    f = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (6,))
    loss = l2_svm_loss(f, target, C=0.8, over_classes="mean")
    (slope,) = torch.autograd.grad(loss, f)
    y = 2 * F.one_hot(target, 4).double() - 1
    torch.testing.assert_close(slope, -2 * 0.8 * y * (1 - y * f.detach()).clamp(min=0) / 24)


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
def test_kept_margins_cost_nothing(path, loss) -> None:
    f = torch.tensor([[1.0, -1.0, -5.0], [-3.0, 2.0, -1.0]], requires_grad=True)
    value = loss(f, torch.tensor([0, 1]))
    (slope,) = torch.autograd.grad(value, f)
    assert float(value.detach()) == 0.0 and bool((slope == 0).all())


def test_labels_of_every_class_indices_signs_and_shares_agree() -> None:
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    one_hot = F.one_hot(y, 4).double()
    for hinge, reduction in itertools.product(("squared", "linear"), ("none", "sum", "mean")):
        want = l2_svm_loss(x, y, hinge=hinge, reduction=reduction)
        for labels in (one_hot, 2 * one_hot - 1):
            torch.testing.assert_close(l2_svm_loss(x, labels, hinge=hinge, reduction=reduction), want)
    several = (torch.randn(7, 4) > 0).double()
    columns = sum(l2_svm_loss(x[:, k : k + 1], several[:, k : k + 1], reduction="none") for k in range(4))
    torch.testing.assert_close(l2_svm_loss(x, several, reduction="none"), columns)
    # between 0 and 1: the expectation over labels drawn with these probabilities
    share = torch.rand(7, 4, dtype=torch.float64)
    plus, minus = ((1 - x).clamp(min=0) ** 2, (1 + x).clamp(min=0) ** 2)
    torch.testing.assert_close(l2_svm_loss(x, share, reduction="none"), (share * plus + (1 - share) * minus).sum(1))


def test_crammer_singer_of_probabilities_is_the_expected_loss() -> None:
    x, p = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64).softmax(1)
    weight = torch.rand(4, dtype=torch.float64)
    costs = torch.stack(
        [crammer_singer_loss(x, torch.full((5,), k), weight, reduction="none") for k in range(4)], dim=1
    )
    torch.testing.assert_close(crammer_singer_loss(x, p, weight, reduction="none"), (p * costs).sum(1))
    tied = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    for k, cost in enumerate((1.0, 1.0, 2.0)):
        assert float(crammer_singer_loss(tied, F.one_hot(torch.tensor([k]), 3).double())) == cost


def test_tied_columns_are_one_binary_machine_of_doubled_C() -> None:
    f, y = torch.randn(8, 1, dtype=torch.float64), torch.randint(2, (8,))
    both = torch.cat((-f, f), dim=1)
    binary = l2_svm_loss(f, y.double().unsqueeze(1) * 2 - 1, reduction="sum", C=1.0)
    torch.testing.assert_close(l2_svm_loss(both, y, reduction="sum", C=0.5), binary)


def test_penalty_on_the_head() -> None:
    x, y, w = torch.randn(4, 3), torch.tensor([0, 1, 2, 2]), torch.randn(3, 7)
    for loss, reduction in itertools.product((l2_svm_loss, crammer_singer_loss), ("sum", "mean")):
        plain = loss(x, y, reduction=reduction)
        half = loss(x, y, reduction=reduction, head_weight=w)
        mean = loss(x, y, reduction=reduction, head_weight=w, reg="mean")
        torch.testing.assert_close(half - plain, 0.5 * w.square().sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean - plain, w.square().mean(), rtol=1e-4, atol=1e-4)
        assert torch.equal(loss(x, y, reduction=reduction, head_weight=w, reg=None), plain)
    leaf = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(l2_svm_loss(x, y, head_weight=leaf), leaf)
    torch.testing.assert_close(slope, w)


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
def test_without_samples_only_the_penalty_is_left(path, loss) -> None:
    w = torch.ones(4, 2)
    x, y = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert float(loss(x, y).detach()) == 0.0 and loss(x, y, reduction="none").shape == (0,)
    assert float(loss(x, y, head_weight=w).detach()) == 4.0
    ignored = loss(torch.full((3, 4), NAN, requires_grad=True), torch.full((3,), 9), ignore_index=9)
    assert float(ignored.detach()) == 0.0
    assert float(loss(torch.zeros(0, 4), torch.zeros(0, 4))) == 0.0


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
def test_nan_and_infinite_scores(path, loss) -> None:
    x = torch.tensor([[INF, 0.0, -9.0], [0.0, -INF, -9.0], [0.0, -INF, -9.0], [NAN, 1.0, 2.0]], requires_grad=True)
    rows = loss(x, torch.tensor([0, 0, 1, 1]), reduction="none")
    assert rows.detach()[:3].tolist() == ([1.0, 1.0, INF] if loss is l2_svm_loss else [0.0, 0.0, INF])
    assert bool(rows.detach()[3].isnan())
    (slope,) = torch.autograd.grad(rows[:2].sum(), x)
    assert bool(slope[:2].isfinite().all())


def test_infinite_scores_with_one_label_per_class() -> None:
    x = torch.tensor([[INF, -INF], [-INF, 3.0]], requires_grad=True)
    rows = l2_svm_loss(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), reduction="none")
    (slope,) = torch.autograd.grad(rows.sum(), x)
    assert rows.tolist() == [0.0, 0.0] and bool((slope == 0).all())


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
@pytest.mark.parametrize("kind", ["index", "every class"])
def test_derivatives_of_both_orders(path, loss, kind) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, 1]) if kind == "index" else torch.rand(3, 4, dtype=torch.float64)
    for hinge in ("squared", "linear"):

        def function(z: Tensor, hinge: str = hinge) -> Tensor:
            return loss(z, target, hinge=hinge)

        assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, x)


def test_bf16_is_summed_in_float32(path) -> None:
    x, y = torch.randn(64, 50).bfloat16(), torch.randint(50, (64,))
    assert torch.equal(l2_svm_loss(x, y), l2_svm_loss(x.float(), y).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert l2_svm_loss(x, y).dtype == torch.float32


@pytest.mark.parametrize(("module", "loss"), [(L2SVMLoss, l2_svm_loss), (CrammerSingerLoss, crammer_singer_loss)])
def test_modules(module, loss) -> None:
    x, y, weight, w = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0]), torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, 2)
    assert torch.equal(module()(x, y), loss(x, y))
    made = module(weight, 1, "sum", C=0.5, margin=2.0, reg="mean")
    want = loss(x, y, weight, 1, "sum", C=0.5, margin=2.0, head_weight=w, reg="mean")
    assert torch.equal(made(x, y, w), want)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x, y, w), want)
    again = module(torch.zeros(3), 1, "sum", C=0.5, margin=2.0, reg="mean")
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x, y, w), want)
    assert "C=0.5" in repr(made) and "margin=2.0" in repr(made)
    with pytest.raises(ArgumentValueError, match="C"):
        module(C=0.0)


def test_what_is_refused_says_what_was_given() -> None:
    x, y = torch.ones(3, 4), torch.tensor([0, 3, 1])
    for labels, values in ((2 * torch.ones(3, 4), "got 2"), (torch.tensor([[1.0, -1.0, 0.5, 0.0]] * 3), "-1, 0, 0.5")):
        with pytest.raises(ArgumentValueError, match=values):
            l2_svm_loss(x, labels)
    with pytest.raises(ArgumentValueError, match="weight needs a target of class indices"):
        l2_svm_loss(x, torch.ones(3, 4), torch.ones(4))
    with pytest.raises(ArgumentValueError, match="head_weight"):
        l2_svm_loss(x, y, reduction="none", head_weight=torch.ones(4, 2))
    assert float(l2_svm_loss(x, torch.ones(3, 4))) == 0.0  # all labels 1 is all positive, signed or not


def test_the_caller_s_labels_stay() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    l2_svm_loss(torch.randn(2, 2), labels)
    assert labels.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
@pytest.mark.parametrize("hinge", ["squared", "linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kernel_equals_reference_at_ties_and_kinks(monkeypatch, loss, hinge, dtype) -> None:
    """Whole numbers: many rivals tie and many margins are met exactly, where a derivative is a choice."""
    x, y = torch.randint(-2, 3, (40, 6)).to(dtype), torch.randint(6, (40,))
    y[3] = -100
    found = []
    for kernels in ("auto", "reference"):
        monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y, torch.arange(1.0, 7.0).to(dtype), hinge=hinge)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_which_implementation_runs() -> None:
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for loss in (l2_svm_loss, crammer_singer_loss):
        assert softgate.explain(loss, x, y).chosen == "blocks"
        assert "every class" in softgate.explain(loss, x, torch.ones(3, 4)).refused["blocks"]
        assert "empty" in softgate.explain(loss, x[:0], y[:0]).refused["blocks"]


@pytest.mark.parametrize("loss", [l2_svm_loss, crammer_singer_loss])
def test_ignored_rows_reach_neither_loss_nor_gradient(path, loss) -> None:
    x = torch.randn(4, 3)
    x[1] = NAN
    leaf = x.requires_grad_()
    value = loss(leaf, torch.tensor([0, -100, 2, 1]))
    kept = loss(leaf[[0, 2, 3]], torch.tensor([0, 2, 1]))
    torch.testing.assert_close(value, kept)
    got, want = torch.autograd.grad(value, leaf)[0], torch.autograd.grad(kept, leaf)[0]
    torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]])
    assert bool((got[1] == 0).all())
