"""Tasks whose best possible answer is known, and the measurements made on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from softgate.errors import ArgumentValueError
from softgate.lab.binned_training import GaussianMixtureHead, measure_binned_density
from softgate.lab.cell import CellRun
from softgate.lab.tasks.binned_densities import DATASETS, BinnedDensities
from softgate.lab.tasks.dirichlet_classes import CONCENTRATIONS, dirichlet_classes


def cell(config: dict[str, object], folder: Path, seed: int = 0) -> CellRun:
    return CellRun(paper="test", scale="smoke", cell="cell", config=config, seed=seed, folder=folder)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_truth_is_where_the_targets_fall(dataset: str) -> None:
    task = BinnedDensities(dataset, seed=1, rows=20_000, bins=40)
    targets = task.test[1]
    assert task.truth.shape == (4000, 40)
    torch.testing.assert_close(task.truth.sum(1), torch.ones(4000, dtype=torch.float64))
    counts = torch.bincount(targets, minlength=40).double() / 4000
    assert float((counts - task.truth.mean(0)).abs().max()) < 0.015  # densities at the centres are not quite masses
    # and row by row: the truth explains the targets better than their mean distribution does
    rows = task.truth.gather(1, targets[:, None]).clamp_min(1e-12).log().mean()
    assert float(rows) > float(counts[targets].log().mean()) + 0.3


def test_epochs_walk_every_training_row_once() -> None:
    task = BinnedDensities("gmm2", seed=0, rows=50, bins=4)
    seen = torch.cat([torch.cat((task.batch(step, 16)[0], task.batch(step, 16)[1][:, None]), 1) for step in range(3)])
    everything = torch.cat((task.train[0], task.train[1][:, None]), 1)
    assert sorted(seen.tolist()) == sorted(everything.tolist())
    assert not torch.equal(task.batch(0, 40)[1], task.batch(1, 40)[1])
    assert torch.equal(task.batch(2, 16)[0], BinnedDensities("gmm2", seed=0, rows=50, bins=4).batch(2, 16)[0])


@pytest.mark.parametrize("arguments", [{"dataset": "uniform"}, {"rows": 5}, {"bins": 7}])
def test_bad_densities(arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentValueError, match=next(iter(arguments))):
        BinnedDensities(**{"dataset": "beta", "seed": 0, **arguments})


def test_the_mixture_head_is_a_mixture() -> None:
    head = GaussianMixtureHead(3, 40)
    with torch.no_grad():
        head.means.weight.zero_()
        head.means.bias.copy_(torch.atanh(torch.tensor([-0.5, 0.25])))
    density = head(torch.randn(2, 3)).exp() - 1e-5
    centres = head.centres
    expected = sum(torch.exp(-0.5 * ((centres - mean) / 0.05) ** 2) for mean in (-0.5, 0.25)) / 2
    expected = expected / (0.05 * (2 * torch.pi) ** 0.5)
    torch.testing.assert_close(density, expected.expand(2, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "fourier", "gmm"])
def test_the_divergence_falls_with_training(head: str, tmp_path: Path) -> None:
    config = {"dataset": "gmm2", "head": head, "epochs": 2, "batch": 256, "frequencies": 6, "gamma": 1e-6}
    figures = measure_binned_density(cell(config, tmp_path))
    assert figures["curve_kl"][-1] < figures["curve_kl"][0] and figures["epoch"] == [1.0, 2.0]
    assert sum(figures["prediction"]) == pytest.approx(1.0) and figures["smoothness"] > 0


@pytest.mark.parametrize("dim", sorted(CONCENTRATIONS))
def test_no_rule_beats_the_bayes_rule(dim: int) -> None:
    data = dirichlet_classes(0, dim, 200, 4000)
    assert data.train.shape == (200, dim) and (data.train_labels == 1).mean() == pytest.approx(0.4)
    np.testing.assert_allclose(np.linalg.norm(data.test, axis=1), 1.0)
    best = (data.best == data.test_labels).mean()
    assert best > 0.72
    # linear rules on the logarithms, fitted on the test points themselves, contain it
    logs = np.log(np.maximum(data.test, 1e-300) / np.maximum(data.test, 1e-300).sum(1, keepdims=True))
    odds = logs @ (np.subtract(*CONCENTRATIONS[dim]))
    rivals = [
        (np.where(odds > cut, 1, -1) == data.test_labels).mean() for cut in np.quantile(odds, np.arange(0, 1, 0.01))
    ]
    assert best >= max(rivals) - 0.01
    np.testing.assert_array_equal(dirichlet_classes(0, dim, 50, 4000).test, data.test)
    with pytest.raises(ArgumentValueError, match="dim"):
        dirichlet_classes(0, 4, 10, 10)


def test_measurements_of_kernels(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    from softgate.lab import kernel_classification as lab

    models = {"optimal": {"activation": "3d_opt"}}
    figures = lab.measure_accuracy(cell({"dim": 3, "rows": 200, "tests": 200, "models": models}, tmp_path))
    assert figures["bayes"] - figures["optimal"] == pytest.approx(figures["gap_optimal"])
    assert figures["majority"] == 0.6 < figures["nearest"] <= figures["bayes"] + 0.02
    limits = {"dim": 3, "rows": 30, "tests": 30, "depth": 50, "hermite_depth": 10}
    assert lab.measure_limits(cell(limits, tmp_path))["hermite_is_nearest"] == 1.0
    config = {"rows": 200, "tests": 200, "width": 32, "depth": 2, "steps": 60, "lr": 0.01, "batch": 64}
    network = lab.measure_finite_network(cell(config, tmp_path))
    assert network["curve_test"][-1] == network["network"] > 0.8
