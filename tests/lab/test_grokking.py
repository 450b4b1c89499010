"""The grokking tasks and the study on them: data, precision of the loss, what is measured, resuming."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import SoftgateError
from softgate.lab.cell import CellRun
from softgate.lab.grokking import measure_grokking, rounded_cross_entropy
from softgate.lab.tasks.modular_arithmetic import modular_arithmetic
from softgate.lab.tasks.sparse_parity import sparse_parity

PARITY = {"kind": "parity", "rows": 80, "noise": 6, "parity": 2, "fraction": 0.5}


@pytest.mark.parametrize(("operation", "sign"), [("add", 1), ("subtract", -1)])
def test_modular_sums(operation, sign) -> None:
    split = modular_arithmetic(0, 7, operation, 0.4)
    assert len(split.train[1]) == 19 and len(split.test[1]) == 30
    x = torch.cat([split.train[0], split.test[0]])
    labels = torch.cat([split.train[1], split.test[1]])
    first, second = x[:, :7].argmax(1), x[:, 7:].argmax(1)
    assert x.shape == (49, 14) and bool((x.sum(1) == 2).all())
    assert torch.equal((first + sign * second) % 7, labels)
    assert len({(int(a), int(b)) for a, b in zip(first, second, strict=True)}) == 49


def test_modular_product_as_tokens() -> None:
    (pairs, labels), _ = modular_arithmetic(3, 11, "product", 0.9, tokens=True)
    assert pairs.dtype == torch.int64 and torch.equal(pairs.prod(1) % 11, labels)
    again, other = modular_arithmetic(3, 11, "product", 0.9, tokens=True), modular_arithmetic(4, 11, "product", 0.9)
    assert torch.equal(again.train[0], pairs) and not torch.equal(other.train[1], labels)


def test_sparse_parity() -> None:
    split = sparse_parity(0, rows=500, noise=8, parity=3, fraction=0.5)
    x, y = torch.cat([split.train[0], split.test[0]]), torch.cat([split.train[1], split.test[1]])
    assert x.shape == (500, 11) and len(x.unique(dim=0)) == 500
    assert torch.equal(x[:, :3].sum(1).long() % 2, y)
    assert 0.4 < float(y.float().mean()) < 0.6
    assert len(sparse_parity(1, rows=8, noise=1, parity=2).train[1]) == 4  # every vector there is


@pytest.mark.parametrize(
    "call",
    [
        lambda: modular_arithmetic(0, 1),
        lambda: modular_arithmetic(0, 7, "divide"),
        lambda: modular_arithmetic(0, 7, fraction=1.0),
        lambda: sparse_parity(0, rows=9, noise=1, parity=2),
        lambda: sparse_parity(0, rows=1),
    ],
)
def test_tasks_refuse_nonsense(call) -> None:
    with pytest.raises(SoftgateError):
        call()


def test_rounded_cross_entropy_dies_at_the_threshold_of_its_dtype() -> None:
    target = torch.tensor([0])
    for margin, alive in ((7.5, True), (7.8, False)):
        loss = rounded_cross_entropy(torch.tensor([[margin, 0.0]]), target, torch.float16)
        assert (float(loss) > 0) is alive
    logits = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64)
    wide = rounded_cross_entropy(logits, target, torch.float64)
    torch.testing.assert_close(wide, torch.nn.functional.cross_entropy(logits, target, reduction="none"))


def run_of(folder, resume: bool = False, **config) -> CellRun:
    settings = {"task": PARITY, "hidden": [16], "lr": 0.01, "epochs": 40, "evaluations": 4, **config}
    return CellRun("stablemax", "smoke", "cell", settings, 0, folder, resume=resume)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"loss": "stablemax"},
        {"loss": "collapse-free", "orthogonal": True},
        {"precision": "float16"},
        {"precision": "float64", "momentum": 0.8},
        {"task": {"kind": "modular", "modulus": 5, "operation": "add", "fraction": 0.6}, "weight_decay": 1.0},
        {"task": {"kind": "modular", "modulus": 5, "fraction": 0.6}, "transformer": True, "epochs": 4},
    ],
)
def test_every_kind_of_cell_runs(tmp_path, config) -> None:
    figures = measure_grokking(run_of(tmp_path, **config))
    shares = ("test_acc", "train_acc", "collapse", "zero_loss", "zero_gradient", "mean_collapse")
    assert all(0.0 <= figures[name] <= 1.0 for name in shares)
    assert len(figures["epoch"]) == len(figures["alignment_curve"]) == 4
    assert figures["best_test_acc"] == max(figures["test_acc_curve"])


def test_orthogonal_gradients_are_not_aligned(tmp_path) -> None:
    config = {"task": {"kind": "modular", "modulus": 5, "fraction": 0.6}, "epochs": 60}
    plain = measure_grokking(run_of(tmp_path / "plain", **config))
    orthogonal = measure_grokking(run_of(tmp_path / "orthogonal", orthogonal=True, **config))
    assert abs(plain["alignment_curve"][-1]) > 0.3
    # measured after the step, which has moved the weights a little
    assert abs(orthogonal["alignment_curve"][-1]) < 0.1


def test_same_seed_same_figures(tmp_path) -> None:
    first, second = (measure_grokking(run_of(tmp_path / name, loss="stablemax")) for name in ("a", "b"))
    assert first == second


def test_resuming_a_finished_run_gives_its_figures(tmp_path) -> None:
    first = measure_grokking(run_of(tmp_path, orthogonal=True))
    assert measure_grokking(run_of(tmp_path, resume=True, orthogonal=True)) == first


def test_unknown_losses_are_refused(tmp_path) -> None:
    with pytest.raises(SoftgateError, match="loss"):
        measure_grokking(run_of(tmp_path, loss="hinge"))
