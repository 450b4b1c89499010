"""Deep kernel classifiers beside the best possible one, and the limits of their kernels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._estimators.deep_kernel import DeepKernelClassifier
from softgate._estimators.hilbert import HilbertClassifier
from softgate._estimators.limits import log_nngp, scaled_ntk
from softgate.activations import HermiteActivation, dual_activation
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.dirichlet_classes import dirichlet_classes
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_accuracy", "measure_finite_network", "measure_limits", "measure_orders"]

#: Distances 1 - ξ between which the order of the singularity is measured.
_GAPS = (1e-7, 1e-5)


def measure_accuracy(run: CellRun) -> dict[str, float]:
    """Test accuracy of several classifiers on the Dirichlet classes.

    The configuration holds ``dim``, ``rows``, ``tests`` and ``models``: name -> arguments of
    :class:`softgate.losses.DeepKernelClassifier`.

    Returns:
        An accuracy per model; ``bayes``, ``nearest`` (neighbour), ``hilbert`` and ``majority``; and for every one but
        ``bayes`` its ``gap_…`` to it.
    """
    config = run.config
    data = dirichlet_classes(run.seed, config["dim"], config["rows"], config["tests"])
    classifiers: dict[str, Any] = {"nearest": DeepKernelClassifier("hermite_2"), "hilbert": HilbertClassifier()}
    for name, options in config["models"].items():
        classifiers[name] = DeepKernelClassifier(**options)
    accuracies = {}
    for index, (name, model) in enumerate(classifiers.items()):
        model.fit(data.train, data.train_labels)
        accuracies[name] = float((model.predict(data.test) == data.test_labels).mean())
        run.log(index + 1, len(classifiers), **{name: accuracies[name]})
    larger = 1 if (data.train_labels == 1).mean() > 0.5 else -1
    accuracies["majority"] = float((data.test_labels == larger).mean())
    best = float((data.best == data.test_labels).mean())
    return {"bayes": best, **accuracies, **{f"gap_{name}": best - value for name, value in accuracies.items()}}


def measure_orders(run: CellRun) -> dict[str, float | list[float]]:
    """Slope of ``log K`` over ``log(1 - ξ)`` near ξ = 1 at depth ``depth``, of the NNGP kernel and the NTK.

    Returns:
        ``nngp_NAME`` and ``ntk_NAME`` for every activation in ``activations``; and the logarithm (base 10) of the NNGP
        kernels over ``gap`` (its logarithm).
    """
    depth = int(run.config["depth"])
    gaps = torch.logspace(-7, -0.25, 28, dtype=torch.float64)  # at 1 the correlation is 0, and its logarithm infinite
    ends = torch.tensor(_GAPS, dtype=torch.float64)
    figures: dict[str, float | list[float]] = {"gap": gaps.log10().tolist()}
    for name in run.config["activations"]:
        dual = dual_activation(name)
        step = ends.log().diff()
        figures[f"nngp_{name}"] = float(log_nngp(1.0 - ends, dual, depth)[0].diff() / step)
        figures[f"ntk_{name}"] = float(scaled_ntk(1.0 - ends, dual, depth).log().diff() / step)
        scaled = log_nngp(1.0 - gaps, dual, depth)[0] - depth * math.log(dual.slope)
        figures[f"curve_{name}"] = (scaled / math.log(10.0)).tolist()
    return figures


def measure_limits(run: CellRun) -> dict[str, float]:
    """Whether networks with a mean, and without a linear part, become what the theorem says.

    The configuration holds ``dim``, ``rows``, ``tests``, ``depth`` of the ReLU network and ``hermite_depth``.

    Returns:
        ``relu_is_majority``, the share of test points on which the deep ReLU network's NTK says the majority class;
        ``hermite_is_nearest``, on which the NNGP of he_3 says what the nearest neighbour does.
    """
    config = run.config
    data = dirichlet_classes(run.seed, config["dim"], config["rows"], config["tests"])
    larger = 1 if (data.train_labels == 1).mean() > 0.5 else -1
    relu = DeepKernelClassifier("relu", config["depth"], "ntk").fit(data.train, data.train_labels)
    hermite = DeepKernelClassifier("hermite_3", config["hermite_depth"]).fit(data.train, data.train_labels)
    nearest = data.train_labels[(data.test @ data.train.T).argmax(1)]
    return {
        "relu_is_majority": float((relu.predict(data.test) == larger).mean()),
        "hermite_is_nearest": float((hermite.predict(data.test) == nearest).mean()),
    }


class _NTKNetwork(nn.Module):
    """A fully connected network without biases in NTK parametrisation: ``W x / √(inputs)`` with N(0, 1) weights."""

    def __init__(self, dim: int, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (dim, *(width,) * depth, 1)
        self.weights = nn.ParameterList(torch.randn(m, n, generator=generator) for n, m in pairwise(sizes))
        self.activation = HermiteActivation("3d_opt")

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n,) of points (n, dim) of length 1."""
        x = x * math.sqrt(x.shape[1])  # entries of variance 1 in the first layer, as in all others
        for index, weight in enumerate(self.weights):
            x = (self.activation(x) if index else x) @ weight.mT / math.sqrt(weight.shape[1])
        return x.squeeze(1)


def measure_finite_network(run: CellRun) -> dict[str, float | list[float]]:
    """Train a finite network with the activation for three coordinates, beside its infinite limit.

    The configuration holds ``rows``, ``tests``, ``width``, ``depth``, ``steps``, ``lr`` and ``batch``.

    Returns:
        ``network``, ``train``, ``limit`` and ``bayes``: accuracies; and the curve ``curve_test`` over ``step``.
    """
    config = run.config
    data = dirichlet_classes(run.seed, 3, config["rows"], config["tests"])
    model = _NTKNetwork(3, config["width"], config["depth"], seeds.generator(run.seed, "network"))
    points, labels = torch.tensor(data.train).float(), torch.tensor(data.train_labels).float()
    tests = torch.tensor(data.test).float()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(points), (config["batch"],), generator=seeds.generator(run.seed, "batch", step))
        return points[rows], labels[rows]

    def accuracy(net: nn.Module, x: Tensor, y: np.ndarray) -> float:
        return float((np.where(net(x).cpu().numpy() > 0.0, 1, -1) == y).mean())

    curves = fit(
        model,
        lambda net, rows: F.soft_margin_loss(net(rows[0]), rows[1]),
        TrainConfig(steps=config["steps"], lr=config["lr"], eval_every=config["steps"] // 10),
        batches=batch,
        run=run,
        evaluate=lambda net: {
            "test": accuracy(net, tests.to(run.device), data.test_labels),
            "train": accuracy(net, points.to(run.device), data.train_labels),
        },
    )
    limit = DeepKernelClassifier("3d_opt").fit(data.train, data.train_labels)
    return {
        "network": curves["test"][-1],
        "train": curves["train"][-1],
        "limit": float((limit.predict(data.test) == data.test_labels).mean()),
        "bayes": float((data.best == data.test_labels).mean()),
        "curve_test": curves["test"],
        "step": curves["eval_step"],
    }
