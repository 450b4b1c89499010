"""Laws of losses with the signature of ``torch.nn.functional.cross_entropy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate.testing.budgets import close
from softgate.testing.laws._law import law
from softgate.testing.report import fail
from softgate.testing.strategies import LossDraw
from softgate.testing.subject import Subject

__all__ = [
    "class_indices_equal_one_hot_probabilities",
    "class_permutation_invariant",
    "ignore_index_removes",
    "label_smoothing_mixes",
    "mean_is_average",
    "nonnegative_loss",
    "positions_are_samples",
    "shift_invariant_loss",
    "weight_scales_samples",
]


def _free(*names: str) -> Any:
    return lambda op: op.is_free(*names)


def _agree(op: Subject, draw: LossDraw, got: Tensor, expected: Tensor, message: str, extra: float = 0.0) -> None:
    largest = float(draw.x.abs().max())
    # a loss is a difference of scores: its error is measured against the scores
    slack = 8 * torch.finfo(torch.float32).eps * max(largest, 1.0) * max(float(draw.weight.max()), 1.0)
    off = (got.double() - expected.double()).abs()
    if got.shape != expected.shape or not (
        close(got, expected, terms=draw.x.numel(), extra=extra) or bool((off <= slack * draw.x.numel()).all())
    ):
        fail(message, x=draw.x, target=draw.target, weight=draw.weight, got=got, expected=expected)


@law("loss", draws="losses", always=True, applies=_free("reduction"))
def mean_is_average(op: Subject, draw: LossDraw) -> None:
    """``mean`` and ``sum`` are the average and the sum of ``none``, the average weighted by the target's weight."""
    single = op(draw.x, draw.target, reduction="none")
    if single.shape != draw.target.shape:
        fail("reduction='none' gives another shape than the target", got=single, target=draw.target)
    _agree(op, draw, op(draw.x, draw.target, reduction="sum"), single.sum(), "sum is not the sum of none")
    _agree(op, draw, op(draw.x, draw.target, reduction="mean"), single.mean(), "mean is not the average of none")
    if op.is_free("weight"):
        weighted = op(draw.x, draw.target, weight=draw.weight, reduction="none")
        expected = weighted.sum() / draw.weight[draw.target].sum()
        got = op(draw.x, draw.target, weight=draw.weight, reduction="mean")
        _agree(op, draw, got, expected, "the weighted mean does not divide by the sum of the targets' weights")


@law("loss", draws="losses", always=True, applies=_free("weight", "reduction"))
def weight_scales_samples(op: Subject, draw: LossDraw) -> None:
    """A class weight multiplies the loss of the samples of that class."""
    if op.fixed.get("label_smoothing"):
        return
    plain = op(draw.x, draw.target, reduction="none")
    weighted = op(draw.x, draw.target, weight=draw.weight, reduction="none")
    _agree(op, draw, weighted, plain * draw.weight[draw.target], "the weight does not scale the loss")


@law("loss", draws="losses", always=True, applies=_free("ignore_index", "reduction"))
def ignore_index_removes(op: Subject, draw: LossDraw) -> None:
    """Samples with the ignored label count as if they were not there: loss 0, gradient 0, not in the mean."""
    ignored = int(draw.target[0])
    kept = draw.target != ignored
    x = draw.x.clone().requires_grad_()
    single = op(x, draw.target, ignore_index=ignored, reduction="none")
    expected = torch.zeros_like(single)
    expected[kept] = op(draw.x, draw.target, reduction="none")[kept]
    _agree(op, draw, single.detach(), expected.detach(), "an ignored sample has a loss")
    (gradient,) = torch.autograd.grad(single.sum(), x)
    if bool((gradient[~kept] != 0).any()):
        fail("an ignored sample has a gradient", x=draw.x, target=draw.target, gradient=gradient)
    if bool(kept.any()):
        mean = op(draw.x, draw.target, ignore_index=ignored, reduction="mean")
        _agree(
            op, draw, mean, op(draw.x[kept], draw.target[kept], reduction="mean"), "ignored samples count in the mean"
        )


@law("loss", draws="losses", always=True, applies=_free("label_smoothing", "reduction"))
def class_indices_equal_one_hot_probabilities(op: Subject, draw: LossDraw) -> None:
    """A class index and the one-hot probabilities of that class give the same loss."""
    one_hot = functional.one_hot(draw.target, draw.x.shape[-1]).to(draw.x.dtype)
    if one_hot.shape[-1] == 1:
        return
    a = op(draw.x, draw.target, reduction="none")
    b = op(draw.x, one_hot, reduction="none")
    _agree(op, draw, b, a, "class indices and one-hot probabilities differ")


@law("loss", draws="losses", always=True, applies=_free("label_smoothing", "reduction"))
def label_smoothing_mixes(op: Subject, draw: LossDraw) -> None:
    """Label smoothing e equals a target of 1 - e on the class and e spread evenly over all classes."""
    classes = draw.x.shape[-1]
    if classes == 1:
        return
    for smoothing in (0.1, 1.0):
        one_hot = functional.one_hot(draw.target, classes).to(draw.x.dtype)
        mixed = (1 - smoothing) * one_hot + smoothing / classes
        for options in ({}, {"weight": draw.weight}) if op.is_free("weight") else ({},):
            a = op(draw.x, draw.target, label_smoothing=smoothing, reduction="none", **options)
            b = op(draw.x, mixed, reduction="none", **options)
            _agree(op, draw, a, b, f"label_smoothing={smoothing} is not a mixture of the targets")


@law("loss", draws="losses", always=True, applies=_free("reduction"))
def positions_are_samples(op: Subject, draw: LossDraw) -> None:
    """Scores (1, C, d) with labels (1, d) give the losses of d samples (d, C)."""
    a = op(draw.x.t().unsqueeze(0), draw.target.unsqueeze(0), reduction="none")
    b = op(draw.x, draw.target, reduction="none").unsqueeze(0)
    _agree(op, draw, a, b, "a position of (N, C, d) is not treated as a sample")


@law("loss", draws="losses", name="nonnegative")
def nonnegative_loss(op: Subject, draw: LossDraw) -> None:
    """The loss is never negative."""
    loss = op(draw.x, draw.target)
    if not bool((loss >= 0).all()):
        fail("the loss is negative or NaN", x=draw.x, target=draw.target, loss=loss)


@law("loss", draws="losses")
def class_permutation_invariant(op: Subject, draw: LossDraw) -> None:
    """Renaming the classes changes nothing."""
    order = torch.randperm(draw.x.shape[-1], generator=draw.generator)
    renamed = torch.argsort(order)[draw.target]
    _agree(op, draw, op(draw.x[:, order], renamed), op(draw.x, draw.target), "renaming the classes changes the loss")


@law("loss", draws="losses", name="shift_invariant")
def shift_invariant_loss(op: Subject, draw: LossDraw) -> None:
    """Adding one number to all scores of a sample changes nothing, as exactly as x + c is rounded."""
    c = float(torch.randint(-1000, 1001, (), generator=draw.generator)) * 10.0 ** float(draw.seed % 4 - 3)
    shifted = LossDraw(draw.x + c, draw.seed, draw.target, draw.weight)
    _agree(op, shifted, op(shifted.x, draw.target), op(draw.x, draw.target), f"adding {c} changes the loss")
