"""A small network on MNIST whose weights have faults, with activations that are bounded in several ways."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._evaluation import accuracy_of
from softgate.activations import ClippedReLU, calibrate_bounds, proact_fit, protect
from softgate.diagnostics import ber_curve
from softgate.errors import check_choice
from softgate.lab import data, seeds
from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_faults"]

_CALIBRATION = 1024
_CHUNK = 500
#: Method -> granularity of the bounds, shape of the clipped activation, and how the bounds are learned.
METHODS: dict[str, tuple[str, str, str]] = {
    "layer": ("layer", "zero", ""),
    "saturate": ("layer", "saturate", ""),
    "neuron": ("neuron", "hyrelu", ""),
    "hybrid": ("hybrid", "hyrelu", ""),
    "fitact": ("neuron", "hyrelu", "jointly"),
    "proact_layer": ("layer", "hyrelu", "progressively"),
    "proact_neuron": ("neuron", "hyrelu", "progressively"),
    "proact": ("hybrid", "hyrelu", "progressively"),
}
Batches = list[tuple[Tensor, Tensor]]


def _network() -> nn.Sequential:
    """Two convolutions with stride 2 and two linear layers, 207,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def _batches(images: Tensor, labels: Tensor, size: int) -> Batches:
    return list(zip(images.split(size), labels.split(size), strict=True))


def measure_faults(run: CellRun) -> dict[str, Any]:
    """Train the network once, bound its activations by several methods, and flip bits.

    The configuration holds ``rows`` (images to train on; 2,000 others decide about bounds), ``epochs``, ``tested``
    (test images), ``methods`` (of :data:`METHODS`), ``fmt``, ``rates`` (name -> bit error rate), ``trials``, and for
    the methods that learn ``learn_epochs`` and ``decays`` (how many of ProAct's).

    Returns:
        ``METHOD_RATE``, mean accuracy over the trials, for ``plain`` and every method; ``curve_METHOD`` of them over
        ``ber``; ``clean_METHOD``, the accuracy without faults; ``bounds_METHOD``, how many numbers the bounds are; and
        ``shrunk_METHOD``, mean of the last layer's bounds over that at the start, for those that learn.
    """
    config = run.config
    methods = config["methods"]
    for name in methods:
        check_choice("methods", name, tuple(METHODS))
    train, test = (data.mnist(split, download=run.download) for split in ("train", "test"))
    order = torch.randperm(len(train.labels), generator=seeds.generator(run.seed, "rows"))
    rows, held = order[: config["rows"]], order[config["rows"] : config["rows"] + 2000]

    def scaled(images: Tensor) -> Tensor:
        return images[:, None].float() / 255.0

    inputs, labels = scaled(train.images[rows]), train.labels[rows]
    holdout = _batches(scaled(train.images[held]), train.labels[held], _CHUNK)
    places = torch.arange(config["tested"]) * len(test.labels) // config["tested"]
    tests = _batches(scaled(test.images[places]), test.labels[places], _CHUNK)
    plain = _trained(run, inputs, labels)
    models: dict[str, nn.Module] = {"plain": plain}
    figures: dict[str, Any] = {}
    for name in methods:
        models[name], shrunk = _bounded(plain, name, inputs, labels, holdout, config)
        figures.update({f"shrunk_{name}": shrunk} if shrunk is not None else {})
    rates = dict(config["rates"])
    for number, (name, model) in enumerate(models.items()):
        curve = ber_curve(model, tests, tuple(rates.values()), config["trials"], config["fmt"], seed=run.seed)
        figures |= {f"{name}_{rate}": mean for rate, mean in zip(rates, curve.mean, strict=True)}
        figures |= {f"curve_{name}": list(curve.mean), f"clean_{name}": accuracy_of(model.eval(), tests)}
        figures[f"bounds_{name}"] = float(sum(m.bound.numel() for m in _clipped(model)))
        run.log(number + 1, len(models), method=name, accuracy=curve.mean[-1])
    return {**figures, "ber": list(rates.values())}


def _clipped(model: nn.Module) -> list[ClippedReLU]:
    return [m for m in model.modules() if isinstance(m, ClippedReLU)]


def _trained(run: CellRun, inputs: Tensor, labels: Tensor) -> nn.Module:
    """The unprotected network."""
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model, size = _network(), 100
    per_epoch = len(labels) // size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(labels), generator=seeds.generator(run.seed, "order", epoch))
        rows = order[place * size : (place + 1) * size]
        return inputs[rows], labels[rows]

    training = TrainConfig(steps=per_epoch * run.config["epochs"], lr=2e-3, schedule="constant", betas=(0.9, 0.999))
    fit(model, lambda net, pair: F.cross_entropy(net(pair[0]), pair[1]), training, batches=batch, run=run)
    return model.cpu()


def _bounded(
    plain: nn.Module, method: str, inputs: Tensor, labels: Tensor, holdout: Batches, config: Any
) -> tuple[nn.Module, float | None]:
    """A copy with bounds, and how far those of the last layer shrank."""
    granularity, mode, learning = METHODS[method]
    batches = _batches(inputs, labels, 100)
    bounds = calibrate_bounds(plain, [x for x, _ in _batches(inputs[:_CALIBRATION], labels[:_CALIBRATION], 256)],
                              granularity)  # fmt: skip
    model = protect(copy.deepcopy(plain), bounds, mode)
    if not learning:
        return model, None
    start = float(_clipped(model)[-1].bound.mean())
    if learning == "jointly":
        _fit_jointly(model, batches, config["learn_epochs"])
    else:
        decays = [4.0 * 10.0**-n for n in range(5, 5 + config["decays"])]
        proact_fit(model, plain, batches, holdout, epochs=config["learn_epochs"], decays=decays)
    return model, float(_clipped(model)[-1].bound.mean()) / start


def _fit_jointly(model: nn.Module, batches: Batches, epochs: int) -> None:
    """The baseline FitAct: all bounds at once, by cross-entropy and 4e-11 times the sum of their mean squares."""
    bounds = [m.bound.requires_grad_(True) for m in _clipped(model)]
    optimizer = torch.optim.Adam(bounds, lr=1e-3)
    model.eval()
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            penalty = torch.stack([bound.square().mean() for bound in bounds]).sum()
            (F.cross_entropy(model(inputs), labels) + 4e-11 * penalty).backward()
            optimizer.step()
    for bound in bounds:
        bound.requires_grad_(False).clamp_(min=0.0)
