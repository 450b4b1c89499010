"""The information plane of small networks from many initial weights, by several estimators.

Shape suffixes: E recorded epochs, K networks, N inputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.diagnostics.information import Settings, estimate, label_symbols
from softgate.diagnostics.information_plane import compression_of, log2_epochs
from softgate.errors import check_choice
from softgate.lab import data, seeds
from softgate.lab.cell import CellRun
from softgate.lab.mlp_ensemble import MLPEnsemble
from softgate.lab.snapshots import Snapshots
from softgate.lab.tasks.icosahedron import icosahedron_symmetry
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_plane", "rank_correlation"]

#: Every fourth recorded epoch is looked at by the density estimator too.
_SPARSE = 4


class _Task(NamedTuple):
    """Rows to train on, to test on and to measure the activity on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    seen: tuple[Tensor, Tensor]


def measure_plane(run: CellRun) -> dict[str, Any]:
    """Train an ensemble, then follow what its layers say about input and label.

    The configuration holds ``data`` (``"icosahedron"`` or ``"mnist"``), ``split`` of the first (``"random"``: 80 % of
    the rows, and batches in a new order every epoch; ``"file"``: the first 80 %, in their order), ``sizes``,
    ``activation``, ``nets``, ``epochs``, ``batch``, ``lr``, ``l2``, ``points`` (about how many epochs are recorded),
    ``estimator`` and ``followed``, the hidden layer that the second estimator looks at.

    Returns:
        For every layer L from 1, means over the networks: ``first_L``, ``max_L``, ``final_L`` and ``mean_L`` of
        I(T; X), ``ity_L`` of the last I(T; Y), ``drop_L``, largest less last, its standard deviation ``spread_L`` over
        networks and its rank correlation ``spearman_L`` with test accuracy (three networks or more); and
        ``curve_L`` over ``epoch``. ``accuracy``, ``train_accuracy``; ``largest`` of all estimates; ``lowest_1`` of the
        first layer's. Under fixed bins between 0 (or -1) and the largest activity of all layers and epochs:
        ``fixed_final_L``, and ``gap_L``, how far they stay below at least at any epoch, mean over networks. Of the
        followed layer ``akde_drop``, and ``akde`` over ``akde_epoch``.
    """
    config = run.config
    task = _task(run)
    model, snapshots, per_epoch = _trained(run, task)
    names = sorted(snapshots.taken)
    epochs = [step // per_epoch for step in names]
    hidden = len(config["sizes"]) - 2
    figures: dict[str, Any] = {"epoch": [float(epoch) for epoch in epochs]}
    drawn, labels = task.seen[0].to(run.device), label_symbols(task.seen[1].to(run.device), task.seen[1])
    ends = _ends(model, snapshots, names, drawn, hidden)
    settings = {
        "plane": Settings(config["estimator"], bound="upper"),
        "fixed": Settings("fixed", range=ends),
        "akde": Settings("akde", bound="upper"),
    }
    found: dict[str, list[list[list[tuple[float, float]]]]] = {name: [] for name in settings}
    for index, name in enumerate(names):
        layers = _activity(model, snapshots.taken[name], drawn)
        for kind, setting in settings.items():
            if kind == "akde" and index % _SPARSE and name != names[-1]:
                continue
            chosen = layers if kind != "akde" else layers[config["followed"] - 1 : config["followed"]]
            found[kind].append([[_pair(T, labels, setting) for T in layer.unbind(0)] for layer in chosen])
        run.log(index + 1, len(names), phase="estimates")
    plane, fixed = torch.tensor(found["plane"]), torch.tensor(found["fixed"])  # (E, layers, K, 2)
    accuracies = _accuracies(model, task.test)
    figures["accuracy"], figures["train_accuracy"] = _mean(accuracies), _mean(_accuracies(model, task.train))
    figures["largest"], figures["lowest_1"] = float(plane[..., 0].max()), float(plane[:, 0, :, 0].min())
    for layer in range(plane.shape[1]):
        figures |= _layer_figures(layer + 1, plane[:, layer], fixed[:, layer], epochs, accuracies)
    dense = torch.tensor(found["akde"])[:, 0, :, 0]
    figures["akde"] = dense.mean(1).tolist()
    figures["akde_epoch"] = [e for i, e in enumerate(figures["epoch"]) if not i % _SPARSE or e == figures["epoch"][-1]]
    figures["akde_drop"] = float((dense.amax(0) - dense[-1]).mean())
    return figures


def _task(run: CellRun) -> _Task:
    config = run.config
    check_choice("data", config["data"], ("icosahedron", "mnist"))
    if config["data"] == "mnist":
        train, test = (data.mnist(split, download=run.download) for split in ("train", "test"))
        pairs = [(part.images.flatten(1).float() / 255.0, part.labels) for part in (train, test)]
        return _Task(pairs[0], pairs[1], pairs[1])
    check_choice("split", config["split"], ("random", "file"))
    patterns, labels = icosahedron_symmetry()
    inputs, count = patterns.float(), int(0.8 * len(labels))
    order = torch.arange(len(labels))
    if config["split"] == "random":
        order = torch.randperm(len(labels), generator=seeds.generator(run.seed, "split"))
    train_rows, test_rows = order[:count], order[count:]
    return _Task((inputs[train_rows], labels[train_rows]), (inputs[test_rows], labels[test_rows]), (inputs, labels))


def _trained(run: CellRun, task: _Task) -> tuple[MLPEnsemble, Snapshots, int]:
    """The ensemble, its weights at the chosen steps, and the steps of an epoch."""
    config = run.config
    model = MLPEnsemble(config["sizes"], config["activation"], config["nets"], run.seed)
    inputs, labels = task.train
    per_epoch = -(-len(labels) // config["batch"])
    epochs = [0, *log2_epochs(config["epochs"], config["points"])]
    snapshots = Snapshots(lambda: dict(model.named_parameters()), [epoch * per_epoch for epoch in epochs])
    shuffled = config["data"] == "mnist" or config["split"] == "random"
    orders = {-1: torch.arange(len(labels))}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        snapshots.look(step)
        epoch, place = divmod(step, per_epoch)
        key = epoch if shuffled else -1
        if key not in orders:
            orders.clear()
            orders[key] = torch.randperm(len(labels), generator=seeds.generator(run.seed, "order", epoch))
        rows = orders[key][place * config["batch"] : (place + 1) * config["batch"]]
        return inputs[rows], labels[rows]

    def loss(net: torch.nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(net, MLPEnsemble)
        x, y = pair
        total = F.cross_entropy(net(x), y.expand(config["nets"], -1), reduction="sum") / len(y)
        return total + config["l2"] * net.penalty() if config["l2"] else total

    steps = per_epoch * config["epochs"]
    fit(
        model, loss, TrainConfig(steps=steps, lr=config["lr"], schedule="constant", clip=None), batches=batch, run=run,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=config["lr"], fused=True),
        state={"snapshots": snapshots},
    )  # fmt: skip
    snapshots.look(steps)
    return model, snapshots, per_epoch


@torch.no_grad()
def _activity(model: MLPEnsemble, weights: Mapping[str, Tensor], inputs: Tensor) -> list[Tensor]:
    """Activity of every layer with these weights, (K, N, units); of the last one the softmax."""
    model.load_state_dict(dict(weights))
    *layers, logits = model.layers(inputs)
    return [layer.transpose(1, 2) for layer in (*layers, logits.softmax(1))]


def _ends(
    model: MLPEnsemble, snapshots: Snapshots, names: list[int], inputs: Tensor, hidden: int
) -> tuple[float, float]:
    """Range of the fixed bins: from 0, or -1 where activity is negative, to the largest of all layers and epochs."""
    low, high = 0.0, 0.0
    for name in names:
        for layer in _activity(model, snapshots.taken[name], inputs)[:hidden]:
            low, high = min(low, float(layer.min())), max(high, float(layer.max()))
    return (-1.0 if low < 0 else 0.0), max(high, 1.0 if low < 0 else 0.0)


def _pair(T: Tensor, labels: Any, settings: Settings) -> tuple[float, float]:
    found = estimate(T, None, labels, settings)
    return found.i_tx, found.i_ty or 0.0


def _layer_figures(
    layer: int, plane: Tensor, fixed: Tensor, epochs: list[int], accuracies: list[float]
) -> dict[str, Any]:
    """Figures of one layer from estimates (E, K, 2)."""
    bits = plane[..., 0]
    drops = [compression_of(epochs, curve.tolist()).drop for curve in bits.unbind(1)]
    figures: dict[str, Any] = {
        "first": float(bits[0].mean()), "max": float(bits.amax(0).mean()), "final": float(bits[-1].mean()),
        "mean": float(bits.mean()), "ity": float(plane[-1, :, 1].mean()), "drop": _mean(drops),
        "spread": statistics.stdev(drops) if len(drops) > 1 else 0.0, "curve": bits.mean(1).tolist(),
        "ity_curve": plane[..., 1].mean(1).tolist(), "fixed_final": float(fixed[-1, :, 0].mean()),
        "gap": float((bits - fixed[..., 0]).mean(1).min()),
    }  # fmt: skip
    if len(drops) > 2:
        figures["spearman"] = rank_correlation(drops, accuracies)
    return {f"{name}_{layer}": value for name, value in figures.items()}


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation, equal values sharing their ranks; 0 where one list is constant."""
    x, y = (_ranks(values) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / scale if scale else 0.0


def _ranks(values: list[float]) -> Tensor:
    row = torch.tensor(values, dtype=torch.float64)
    return (row[:, None] > row).sum(1) + 0.5 * (row[:, None] == row).sum(1)


@torch.no_grad()
def _accuracies(model: MLPEnsemble, pair: tuple[Tensor, Tensor]) -> list[float]:
    device = model.weights[0].device
    right = model(pair[0].to(device)).argmax(1) == pair[1].to(device)
    accuracies: list[float] = right.float().mean(1).tolist()
    return accuracies


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
