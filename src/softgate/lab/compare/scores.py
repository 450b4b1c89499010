"""What a model is trained with, and the figures by which variants are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab.compare.dataset import Kind
from softgate.losses import comp_sum_probabilities
from softgate.swapping.names import family

__all__ = ["METRICS", "Loss", "Metric", "held_out_figures", "metric_of", "registered_losses"]

#: Rows per forward pass of an evaluation.
_CHUNK: dict[Kind, int] = {"text": 64, "images": 250, "table": 8192}


@dataclass(frozen=True)
class Loss:
    """A loss and, where the scores have probabilities of their own, their log loss.

    Attributes:
        train: ``(logits (N, C), target (N,)) -> mean loss``.
        log_loss: ``(logits, target) -> mean of -ln p(target)`` under the probabilities that the loss gives the scores;
            None where it gives them none.
    """

    train: Callable[[Tensor, Tensor], Tensor]
    log_loss: Callable[[Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class Metric:
    """The figure that decides.

    Attributes:
        name: of the figure.
        title: in words.
        better: ``"lower"`` or ``"higher"``.
    """

    name: str
    title: str
    better: str


METRICS = {
    "bits_per_byte": Metric("bits_per_byte", "bits per byte", "lower"),
    "accuracy": Metric("accuracy", "accuracy", "higher"),
}


def metric_of(site: str, kind: Kind) -> Metric:
    """Bits per byte of texts and accuracy elsewhere; accuracy also between losses: their scores differ in meaning."""
    return METRICS["bits_per_byte" if kind == "text" and site != "loss" else "accuracy"]


#: Losses that are the log loss of probabilities of their own.
_LOG_LOSSES = ("collapse_free_cross_entropy", "stablemax_cross_entropy", "taylor_softmax_loss",
               "spherical_softmax_loss")  # fmt: skip


def registered_losses() -> dict[str, Callable[[Mapping[str, Any]], Loss]]:
    """Short name -> ``options -> Loss`` of cross-entropy and of every recorded loss of class scores."""
    found: dict[str, Callable[[Mapping[str, Any]], Loss]] = {"cross_entropy": _cross_entropy}
    for name, record in family("losses", "loss").items():
        short = name.removesuffix("_cross_entropy")
        short = short if short == "z_loss" else short.removesuffix("_loss")
        found[short] = functools.partial(_recorded, name, record.function)
    return found


def _cross_entropy(options: Mapping[str, Any]) -> Loss:
    return Loss(functools.partial(F.cross_entropy, **options), F.cross_entropy)


def _recorded(name: str, function: Callable[..., Tensor], options: Mapping[str, Any]) -> Loss:
    train = functools.partial(function, **options)
    if name == "comp_sum_loss":
        return Loss(train, functools.partial(_comp_sum_log_loss, options))
    plain = {key: value for key, value in options.items() if key != "label_smoothing"}
    return Loss(train, functools.partial(function, **plain) if name in _LOG_LOSSES else None)


def _comp_sum_log_loss(options: Mapping[str, Any], logits: Tensor, target: Tensor) -> Tensor:
    """Of the probabilities that minimise a comp-sum loss, which are not the softmax of its scores."""
    scaled = logits / options.get("temperature", 1.0)
    shares = comp_sum_probabilities(scaled, tau=options.get("tau", 1.0))
    return -shares.gather(-1, target[:, None]).clamp_min(torch.finfo(shares.dtype).tiny).log().mean()


@torch.no_grad()
def held_out_figures(model: nn.Module, held_out: tuple[Tensor, Tensor], loss: Loss, kind: Kind) -> dict[str, float]:
    """Accuracy and, where the scores have probabilities, their log loss: in bits per byte for texts, else in nats.

    All figures of a model whose scores are NaN are NaN.
    """
    inputs, targets = held_out
    device, rows = next(model.parameters()).device, _CHUNK[kind]
    hits, total = 0.0, 0.0
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        logits, wanted = flat(model(x.to(device)), y.to(device))
        hits += math.nan if bool(logits.isnan().any()) else float((logits.argmax(-1) == wanted).sum())
        if loss.log_loss is not None:
            total += float(loss.log_loss(logits.float(), wanted)) * len(wanted)
    figures = {"accuracy": hits / targets.numel()}
    if loss.log_loss is not None:
        mean = total / targets.numel()
        mean = mean if math.isfinite(mean) else math.nan
        figures |= {"bits_per_byte": mean / math.log(2)} if kind == "text" else {"log_loss": mean}
    return figures


def flat(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, C) and targets (N,) of rows or of all positions of sequences."""
    return logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
