"""Lipschitz bounds of MaxMin networks: the authors', and networks trained here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.activations import GroupSort, Householder, MaxMin
from softgate.diagnostics import LipschitzCertificate, lipschitz_bound
from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.maxmin_networks import maxmin_network
from softgate.lab.tasks.image_patches import ImageClassification
from softgate.lab.tasks.noisy_labels import digits
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_layer", "measure_network", "measure_residual", "measure_trained"]

#: Output whose maximum-norm bound is looked at; the authors take the ninth.
ROW = 8
_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "maxmin": lambda width: MaxMin(),
    "groupsort4": lambda width: GroupSort(4),
    "householder": Householder,
    "relu": lambda width: nn.ReLU(),
}
#: Images of each size, in pixels.
_SIZES = {"digits": 64, "mnist": 784}


def measure_layer(run: CellRun) -> dict[str, float]:
    """One MaxMin between identities: its bound as it is, ``nsr``, and rewritten with ReLU, ``rr``."""
    eye = torch.eye(run.config["width"], dtype=torch.float64)
    found = {"nsr": "maxmin", "rr": "maxmin_rr"}
    return {key: lipschitz_bound([eye, eye], activation=name, tol=1e-8).value for key, name in found.items()}


def _euclidean(bound: Callable[..., LipschitzCertificate]) -> dict[str, float]:
    """Both bounds and what surrounds them; NaN in the place of a bound that its certificate does not prove."""
    full, diagonal = bound(multiplier="full"), bound(multiplier="diagonal")
    proven = [found.value if found.verify() else float("nan") for found in (full, diagonal)]
    return {
        "product": full.product,
        "diagonal": proven[1],
        "full": proven[0],
        "lower": full.lower_bound,
        "product_over_diagonal": full.product / proven[1],
        "diagonal_over_full": proven[1] / proven[0],
        "seconds_diagonal": diagonal.seconds,
        "seconds_full": full.seconds,
    }


def _maximum(bound: Callable[..., LipschitzCertificate], row: int | None) -> dict[str, float]:
    found = bound(norm="linf", multiplier="diagonal", output_row=row)
    value = found.value if found.verify() else float("nan")
    return {
        "linf_product": found.product,
        "linf_diagonal": value,
        "linf_lower": found.lower_bound,
        "linf_ratio": found.product / value,
        "seconds_linf": found.seconds,
    }


def measure_network(run: CellRun) -> dict[str, float]:
    """Bounds of a network of the authors, ``run.config["network"]``.

    Returns:
        In the Euclidean norm ``product`` of the layers' norms, ``diagonal`` (S = P = 0), ``full``, ``lower`` by
        sampling; in the maximum norm ``linf_product``, ``linf_diagonal``, ``linf_lower`` of one output, or of all with
        ``run.config["every_row"]``; ratios and ``seconds``.
    """
    weights = maxmin_network(run.config["network"], download=run.download)

    def bound(**options: Any) -> LipschitzCertificate:
        return lipschitz_bound(weights, **options)

    return {**_euclidean(bound), **_maximum(bound, None if run.config.get("every_row") else ROW)}


def measure_residual(run: CellRun) -> dict[str, float]:
    """Bounds of a residual network of the authors.

    Returns:
        ``product``, ``diagonal``, ``full``: of the blocks, times the norms of the linear maps around them, as the
        authors' code has it; ``inner``: with these maps in the matrix inequality; ``lower`` by sampling.
    """
    first, *blocks, last = maxmin_network(run.config["network"], download=run.download)
    ends = float(torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(last, 2))
    middle = _euclidean(lambda **options: lipschitz_bound(blocks, residual=True, **options))
    whole = lipschitz_bound([first, *blocks, last], residual="inner")
    scaled = {name: ends * middle[name] for name in ("product", "diagonal", "full")}
    ratios = {name: middle[name] for name in ("product_over_diagonal", "diagonal_over_full")}
    return {**scaled, **ratios, "inner": whole.value, "lower": whole.lower_bound}


def _data(run: CellRun) -> tuple[Callable[[int], tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Training batches, test images and test labels; images are rows of numbers in [0, 1]."""
    size = run.config["batch"]
    if run.config["data"] == "mnist":
        task = ImageClassification("mnist", run.seed, download=run.download, scaling="unit")

        def batch(step: int) -> tuple[Tensor, Tensor]:
            images, labels = task.batch("train", step, size=size)
            return images.flatten(1), labels

        images, labels = task.test()
        return batch, images.flatten(1), labels
    split = digits(run.seed)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(split.train[1]), (size,), generator=seeds.generator(run.seed, "order", step))
        return split.train[0][rows], split.train[1][rows]

    return draw, *split.test


def measure_trained(run: CellRun) -> dict[str, float]:
    """Train a network and bound it.

    The configuration holds ``data`` (``"digits"`` or ``"mnist"``), ``hidden`` (widths), ``activation``, ``steps``,
    ``batch`` and ``lr``. Adam, constant rate.

    Returns:
        ``accuracy`` on test images, what :func:`measure_network` returns, and ``radius_product`` and ``radius_full``:
        the median over the test images of the change of an image that its decision certainly survives.
    """
    config = run.config
    check_choice("activation", config["activation"], tuple(_ACTIVATIONS))
    batches, images, labels = _data(run)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    widths = [_SIZES[config["data"]], *config["hidden"]]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), _ACTIVATIONS[config["activation"]](after)]
    model = nn.Sequential(*parts, nn.Linear(widths[-1], 10))
    fit(
        model,
        lambda net, pair: F.cross_entropy(net(pair[0]), pair[1]),
        TrainConfig(steps=config["steps"], lr=config["lr"], schedule="constant", betas=(0.9, 0.999), clip=None),
        batches=batches,
        run=run,
    )

    def bound(**options: Any) -> LipschitzCertificate:
        return lipschitz_bound(model, **options)

    figures = {**_euclidean(bound), **_maximum(bound, ROW)}
    with torch.no_grad():
        logits = model.cpu()(images).double()
    first, second = logits.topk(2).values.unbind(1)
    margin = float((first - second).median())
    radii = {f"radius_{name}": margin / (2.0**0.5 * figures[name]) for name in ("product", "full")}
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), **figures, **radii}
